"""Many trainings from one file: what is to do, what is done, and the engines that run it.

`experiment.py` reads the file, `graph.py` makes the jobs and their order, `state.py` reads from disk what is done.
`once.py` runs one job, in the same way for every engine; `workstation.py` is the engine of one machine:

    python -m nnunetv2_ext.experiments.once EXPERIMENT KEY [--engine slurm]

It ends with 0 if the job is done, with 75 if it was stopped and goes on when it is started again, and with another
code if it failed. SIGTERM, SIGINT and SIGUSR1 to it stop a training after the running epoch. It holds the job's lock,
writes the job's log and counts its failures. With `--engine slurm` it leaves the GPUs to Slurm, and passes on every 75.
"""
