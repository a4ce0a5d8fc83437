"""What two or more networks share."""
