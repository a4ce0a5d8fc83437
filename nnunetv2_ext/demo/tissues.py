"""What the phantom's tissues are: their label values, and their Hounsfield units with a contrast medium."""

from dataclasses import dataclass

import numpy as np

__all__ = ["FAT", "LABELS", "LUNG", "MUSCLE", "Contrast"]

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "stomach": 5, "aorta": 6}

FAT, MUSCLE, LUNG = -100.0, 58.0, -860.0  # HU


@dataclass(frozen=True)
class Contrast:
    """Hounsfield units of what takes up contrast medium.

    Attributes:
        aorta, veins, portal, cortex, medulla, liver, spleen, pancreas, stomach: HU of the tissue; for the stomach, of
            what fills it.
    """

    aorta: float
    veins: float
    portal: float
    cortex: float
    medulla: float
    liver: float
    spleen: float
    pancreas: float
    stomach: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Contrast":
        """Draw a moment between the late arterial and the portal venous phase, and a patient who takes it up."""
        phase = rng.uniform(0, 1)  # 0 late arterial (about 35 s after the injection), 1 portal venous (about 75 s)
        uptake = rng.uniform(0.85, 1.15)

        def blend(arterial: float, venous: float, plain: float) -> float:
            enhanced = arterial + phase * (venous - arterial)
            return float(plain + uptake * (enhanced - plain) + rng.normal(0, 4))

        return cls(
            aorta=blend(320, 165, 40),
            veins=blend(70, 140, 40),
            portal=blend(115, 175, 40),
            cortex=blend(205, 200, 35),
            medulla=blend(95, 165, 30),
            liver=blend(78, 112, 58) - max(0.0, rng.normal(0, 12)),  # a fatty liver is darker
            spleen=blend(122, 126, 48),
            pancreas=blend(105, 92, 42),
            stomach=float(rng.uniform(8, 42)),
        )
