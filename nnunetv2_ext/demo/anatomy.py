"""The abdomen of the phantom: which bodies it has, and where they lie."""

import numpy as np
from scipy import ndimage

from nnunetv2_ext.demo.canvas import Canvas, bspline_field
from nnunetv2_ext.demo.tissues import FAT, LABELS, LUNG, MUSCLE, Contrast

__all__ = ["paint_abdomen"]


class _Abdomen:
    """Paints one patient; every method adds bodies, later ones on top of earlier ones."""

    def __init__(self, canvas: Canvas, rng: np.random.Generator, contrast: Contrast) -> None:
        self.canvas, self.rng, self.contrast = canvas, rng, contrast
        self.everywhere = (slice(None), slice(None), slice(None))
        self.texture = bspline_field(rng, canvas.axes, 9.0)
        self.fat_mm = rng.uniform(9, 24)
        self.wall_mm = rng.uniform(10, 14)
        x, y = canvas.x, canvas.y
        roundness = ((np.abs(x) / 163) ** 2.3 + (np.abs(y) / 112) ** 2.3) ** (1 / 2.3)
        self.depth = np.hypot(x, y) * (1 / np.maximum(roundness, 0.02) - 1)  # mm under the skin
        self.belly = np.clip(-y / 112, -1, 1)  # 1 at the front, -1 at the back
        self.fat_depth = self.fat_mm * (1 - 0.3 * self.belly) + 2.0 * canvas.bumps[1]
        self.inner = self.depth - self.fat_depth - self.wall_mm  # mm inside the abdominal wall
        right, left = rng.uniform(52, 64), rng.uniform(44, 56)
        dome_right = right - 0.0062 * ((x + 62) ** 2 + (y + 12) ** 2)
        dome_left = left - 0.0068 * ((x - 66) ** 2 + (y + 5) ** 2)
        middle = min(right, left) - 22 - 0.004 * canvas.x**2 - 0.006 * (y + 55) ** 2
        self.stomach_depth = np.full(x.shape, -99.0, np.float32)  # mm inside the stomach, which the others give way to
        self.under = np.maximum(np.maximum(dome_right, dome_left), middle) - canvas.z  # mm under the diaphragm

    def near(self, *point: float, spread: float = 4.0) -> tuple[float, ...]:
        """Move a point a little: organs do not lie in the same place in everyone."""
        return tuple(float(c + self.rng.normal(0, spread)) for c in point)

    def sized(self, *radii: float, spread: float = 0.07) -> tuple[float, ...]:
        """Scale an organ: one factor for all of it, a smaller one per axis."""
        scale = np.exp(self.rng.normal(0, spread))
        return tuple(float(r * scale * np.exp(self.rng.normal(0, spread / 2))) for r in radii)

    def organ(
        self,
        where: tuple[slice, slice, slice],
        depth: np.ndarray,
        hu: float | np.ndarray,
        label: int = 0,
        gap_mm: float = 2.0,
    ) -> None:
        """Paint an organ with the film of fat that lies around it, kept within the abdomen and in one piece."""
        room = np.minimum(self.inner[where], self.under[where] - 2)
        self.canvas.paint(where, (depth > -gap_mm) & (room > 0), FAT)
        inside = np.minimum(depth, room - 1) > 0
        if label:
            inside = _largest_piece(inside)
        self.canvas.paint(where, inside, hu + 4 * self.texture[where], label)

    def wall(self) -> None:
        """Skin, subcutaneous fat, the muscles around the abdomen, and the fat inside it with the bowel in its folds."""
        hu = np.where(self.depth < 2.2, 5.0, FAT + 5 * self.texture)
        # The flat muscles of the flank lie in sheets with fat between them.
        sheets = MUSCLE - 45 * (np.abs(self.inner + 0.5 * self.wall_mm) < 0.9) + 6 * self.texture
        hu = np.where(self.depth > self.fat_depth, sheets, hu)
        folds = bspline_field(self.rng, self.canvas.axes, 15.0) + 0.35 * self.texture
        low = np.clip((20 - self.canvas.z) / 60, -0.3, 0.6) + 0.5 * self.belly
        folds = 1 / (1 + np.exp(-6 * (folds + 0.5 * low - 0.75)))
        hu = np.where(self.inner > 0, FAT + 6 * self.texture, hu)
        hu = np.where(self.inner > 2, FAT + 130 * folds + 6 * self.texture, hu)
        self.canvas.paint(self.everywhere, self.depth > 0, hu)

    def bowel(self) -> None:
        """Loops of small bowel, and the colon on both sides with gas and stool."""
        canvas, rng = self.canvas, self.rng
        for _ in range(rng.integers(9, 14)):
            centre = (rng.uniform(-75, 75), rng.uniform(-72, -20), rng.uniform(-75, -8))
            radii = self.sized(rng.uniform(13, 26), rng.uniform(11, 17), rng.uniform(10, 18))
            where = canvas.window(centre, radii)
            depth = canvas.ellipsoid(where, centre, radii) + 2.0 * canvas.bumps[0][where]
            wall = rng.uniform(70, 105)
            self.organ(where, depth, np.where(depth < 3, wall, rng.uniform(15, 40)))
        for side in (-1, 1):
            radius = rng.uniform(17, 23)
            start, end = self.near(side * 98, 8, -95), self.near(side * 96, -12, -22 if side < 0 else 5)
            middle, reach = np.add(start, end) / 2, np.abs(np.subtract(end, start)) / 2 + radius
            where = canvas.window(middle, reach)
            depth = canvas.tube(where, start, end, radius) + 3.0 * canvas.bumps[1][where]
            stool = 20 + 55 * self.texture[where] - 60
            gas = (canvas.y[where] < np.mean((start[1], end[1])) - rng.uniform(0, 8)) & (depth > 4)
            self.organ(where, depth, np.where(gas, -880, np.where(depth < 3, 60, stool)))

    def stomach(self) -> None:
        """Stomach with a wall, its contents, and a bubble of gas above their level."""
        canvas, rng = self.canvas, self.rng
        centre, radii = self.near(52, -42, 26), self.sized(42, 32, 36, spread=0.1)
        antrum = (centre[0] - 52, centre[1] + 4, centre[2] - 26)
        where = canvas.window((centre[0] - 18, centre[1], centre[2] - 6), (radii[0] + 32, radii[1] + 8, radii[2] + 18))
        body = canvas.ellipsoid(where, centre, radii, tilt=0.25)
        depth = _smooth_max(body, canvas.tube(where, centre, antrum, 17.0), 8.0) + 2.5 * canvas.bumps[0][where]
        self.stomach_depth[where] = depth
        level = centre[1] - radii[1] * rng.uniform(0.5, 0.85)  # gas rises to the front of a patient lying on the back
        filled = np.where(canvas.y[where] < level, -930.0, self.contrast.stomach + 14 * np.abs(self.texture[where]))
        self.organ(where, depth, np.where(depth < 4, 88.0, filled), LABELS["stomach"], 2.5)

    def spleen(self) -> None:
        """Spleen, hollow towards the stomach."""
        canvas = self.canvas
        centre, radii = self.near(94, 26, 24), self.sized(38, 52, 44, spread=0.1)
        where = canvas.window(centre, radii)
        hollow = canvas.ellipsoid(where, (centre[0] - 42, centre[1] - 18, centre[2]), (34, 36, 70))
        depth = np.minimum(canvas.ellipsoid(where, centre, radii), -hollow) + 2.0 * canvas.bumps[1][where]
        depth = np.minimum(depth, -2.5 - self.stomach_depth[where])
        self.organ(where, depth, self.contrast.spleen, LABELS["spleen"])

    def liver(self) -> None:
        """Liver with its vessels, and the gall bladder under it."""
        canvas, contrast = self.canvas, self.contrast
        right, right_radii = self.near(-78, -4, 14), self.sized(64, 84, 72)
        left, left_radii = self.near(-14, -52, 30), self.sized(66, 32, 36, spread=0.12)
        where = canvas.window((-45, -15, 14), (120, 100, 90))
        depth = _smooth_max(
            canvas.ellipsoid(where, right, right_radii, tilt=-0.15), canvas.ellipsoid(where, left, left_radii), 10.0
        )
        hilum = self.near(-30, -2, 4)
        notch = canvas.ellipsoid(where, (hilum[0] + 22, hilum[1] + 26, hilum[2] - 12), (46, 36, 60))
        behind = canvas.ellipsoid(where, (-48, 62, -46), (46, 48, 92))  # the space of the right kidney
        depth = np.minimum(np.minimum(depth, -notch), -behind) + 2.5 * canvas.bumps[0][where]
        depth = np.minimum(depth, -2.5 - self.stomach_depth[where])
        vessels = np.full(depth.shape, -99.0, np.float32)
        for end, radius in (((-70, 5, 10), 6.0), ((-100, 25, 0), 4.0), ((-95, -35, 25), 4.0), ((-20, -50, 26), 4.5)):
            vessels = np.maximum(vessels, canvas.tube(where, hilum, self.near(*end, spread=6), radius))
        confluence = self.near(-26, 22, 46)
        for end in ((-95, 35, 32), (-75, -35, 38), (-25, -55, 36)):
            vessels = np.maximum(vessels, canvas.tube(where, confluence, self.near(*end, spread=6), 4.5))
        self.organ(where, depth, np.where(vessels > 0, contrast.portal, contrast.liver), LABELS["liver"])
        centre, radii = self.near(-52, -42, -34), self.sized(14, 16, 24, spread=0.12)
        where = canvas.window(centre, radii)
        self.organ(where, canvas.ellipsoid(where, centre, radii), 9.0, gap_mm=1.0)

    def pancreas(self) -> None:
        """Pancreas in front of the large vessels, with the splenic vein behind it."""
        canvas = self.canvas
        points = [self.near(*p, spread=3) for p in ((-26, -8, -14), (4, -20, 0), (42, 2, 10), (76, 16, 20))]
        for start, end, radius in zip(points, points[1:], (13.0, 10.0, 9.0), strict=False):
            middle, reach = np.add(start, end) / 2, np.abs(np.subtract(end, start)) / 2 + radius
            where = canvas.window(middle, reach)
            depth = canvas.tube(where, start, end, radius) + 2.5 * canvas.bumps[0][where]
            self.organ(where, depth, self.contrast.pancreas - 30 * np.clip(self.texture[where], 0, None))
            behind_start, behind_end = ((p[0], p[1] + radius, p[2] + 2) for p in (start, end))
            self.organ(where, canvas.tube(where, behind_start, behind_end, 4.0), self.contrast.portal, gap_mm=0.0)

    def kidneys(self) -> None:
        """Kidneys in their fat: bright cortex, darker medulla, the renal sinus open to the middle."""
        canvas, contrast = self.canvas, self.contrast
        for side, name, z in ((-1, "kidney_right", -26), (1, "kidney_left", -12)):
            centre, radii = self.near(side * 63, 44, z, spread=3.5), self.sized(27, 26, 50, spread=0.08)
            where = canvas.window(centre, radii)
            depth = canvas.ellipsoid(where, centre, radii, tilt=-side * 0.22) + 1.2 * canvas.bumps[1][where]
            sinus_centre = (centre[0] - side * 15, centre[1] - 5, centre[2])
            sinus = canvas.ellipsoid(where, sinus_centre, (15, 8, 20)) + 1.5 * self.texture[where]
            pyramids = np.clip(1.5 * np.sin(canvas.z[where] / 3.6) + canvas.bumps[0][where], -1, 1) * 2
            hu = np.where(depth < 7.5 + pyramids, contrast.cortex, contrast.medulla)
            self.organ(where, depth, FAT, gap_mm=8.0)
            self.organ(where, np.minimum(depth, -sinus), hu, LABELS[name], gap_mm=0.0)
            for vessel, hu_vessel, shift in ((4.0, contrast.veins, -5), (3.0, contrast.aorta, 2)):
                root = (side * 16.0 if hu_vessel == contrast.aorta else -22 + side * 8, 28.0 + shift, centre[2] + 6)
                where = canvas.window(np.add(root, sinus_centre) / 2, (30, 18, 14))
                inside = (canvas.tube(where, root, sinus_centre, vessel) > 0) & (canvas.labels[where] == 0)
                canvas.paint(where, inside, hu_vessel)

    def back(self) -> None:
        """Muscles beside the spine, and the spine with discs, canal, arches and processes."""
        canvas, rng = self.canvas, self.rng
        for side in (-1, 1):
            for centre, radii in (((side * 34, 84, 0), (27, 17, 400)), ((side * 66, 76, -60), (17, 11, 62))):
                where = canvas.window(centre, (*radii[:2], 100))
                under_skin = self.depth[where] - 0.5 * self.fat_depth[where]
                depth = np.minimum(canvas.ellipsoid(where, centre, radii) + canvas.bumps[0][where], under_skin)
                canvas.paint(where, (depth > -2) & (under_skin > 0), FAT)
                canvas.paint(where, depth > 0, MUSCLE - 55 * (self.texture[where] > 1.5))
            where = canvas.window((side * 36, 54, -40), (26, 22, 90))
            growth = np.clip((30 - canvas.z[where]) / 90, 0.05, 1)  # the psoas widens downwards
            depth = (1 - np.hypot((canvas.x[where] - side * 34) / 20, (canvas.y[where] - 54) / 19) / growth) * 18
            canvas.paint(where, depth > 0, MUSCLE + 4)
        where = canvas.window((0, 72, 0), (58, 44, 120))
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where] + rng.uniform(0, 34)
        level = np.abs((z + 17) % 34 - 17)  # mm from the middle of the nearest vertebra
        body = (1 - np.hypot(x / 22, (y - 53) / 17)) * 19
        disc = level > 13
        bone = np.where((body < 3.0) | (level > 11), 430.0, 165 + 30 * self.texture[where])
        canvas.paint(where, body > 0, np.where(disc, 92.0, bone))
        canal = np.hypot(x / 1.2, y - 78) - 8
        canvas.paint(where, canal < 5, np.where(level < 11, 480.0, MUSCLE))
        pedicle = (np.abs(np.abs(x) - 15) < 5) & (np.abs(y - 70) < 9) & (level < 8)
        process = (np.abs(x) < 4) & (y > 84) & (y < 106) & (np.abs(level - 2) < 9)
        across = (np.abs(y - 76 - 0.15 * np.abs(x)) < 4) & (np.abs(x) < 44) & (level < 6)
        canvas.paint(where, (pedicle | process | across) & (canal > 0) & (self.depth[where] > 4), 420.0)
        canvas.paint(where, canal < 0, np.where(np.hypot(x, y - 78) < 5.5, 34.0, 5.0))

    def ribs(self) -> None:
        """Ribs: tubes in the wall that run down from the back to the front, down to the costal margin."""
        canvas = self.canvas
        sideways = np.arctan2(np.abs(canvas.x), canvas.y * 1.4)  # 0 at the back, pi at the front
        z = canvas.z + 34 * sideways + self.rng.uniform(0, 27)
        across = np.hypot((z + 13.5) % 27 - 13.5, 1.15 * (self.inner + 0.42 * self.wall_mm))
        present = (canvas.z > -46 + 40 * self.belly) & (sideways > 0.42) & (sideways < 2.75)
        cartilage = sideways > 2.3
        hu = np.where(cartilage, 110.0, np.where(across > 3.2, 560.0, 260.0))
        canvas.paint(self.everywhere, (across < 5.6) & present, hu)

    def vessels(self) -> None:
        """Aorta with some calcium in its wall, its first branches, and the inferior vena cava."""
        canvas, rng, contrast = self.canvas, self.rng, self.contrast
        radius = rng.uniform(10.5, 13.5)
        top, bottom = self.near(9, 26, 110, spread=2.5), self.near(5, 24, -110, spread=2.5)
        cava = (*self.near(-24, 25, spread=2), 0.0)
        where = canvas.window(cava, (17, 14, 120))
        depth = (1 - np.hypot((canvas.x[where] - cava[0]) / 14, (canvas.y[where] - cava[1]) / 10.5)) * 12
        canvas.paint(where, (depth > -1.5) & (canvas.labels[where] == 0), FAT)
        canvas.paint(where, (depth > 0) & (self.under[where] > -10), contrast.veins)
        # Coeliac trunk and superior mesenteric artery.
        for z, reach in ((rng.normal(12, 5), 30.0), (rng.normal(-6, 5), 42.0)):
            start, end = (8.0, 20.0, z), (8.0 + rng.normal(0, 6), 20 - reach, z - reach / 2)
            where = canvas.window(np.add(start, end) / 2, (14, 26, 22))
            inside = (canvas.tube(where, start, end, 3.8) > 0) & (canvas.labels[where] == 0)
            canvas.paint(where, inside, contrast.aorta)
        where = canvas.window((7, 25, 0), (24, 22, 120))
        depth = canvas.tube(where, top, bottom, radius)
        canvas.paint(where, (depth > -2.5) & (depth <= 0) & (canvas.labels[where] == 0), FAT)
        calcium = (depth < 2.0) & (canvas.bumps[0][where] > 1.5)
        canvas.paint(where, depth > 0, np.where(calcium, 650.0, contrast.aorta), LABELS["aorta"])

    def chest(self) -> None:
        """Lungs above the diaphragm, with vessels, and the heart between them."""
        canvas = self.canvas
        up = -self.under
        chest = (up > 0) & (self.inner > 1) & (canvas.labels == 0)
        spine = np.hypot(canvas.x / 30, (canvas.y - 48) / 34) < 1
        heart = np.hypot((canvas.x - 22) / 58, (canvas.y + 48) / 40) < 1
        lung = LUNG + 25 * self.texture + 700 * (self.texture > 2.1)
        lung = np.where(heart, 0.35 * self.contrast.aorta + 60, lung)
        canvas.paint(self.everywhere, chest & ~spine, lung)


def paint_abdomen(canvas: Canvas, rng: np.random.Generator, contrast: Contrast) -> None:
    """Paint one abdomen with its organs, from the skin inwards.

    Args:
        canvas: Where to paint; it is expected to be empty.
        rng: Source of the positions, sizes and textures.
        contrast: Hounsfield units of the enhanced tissues.
    """
    abdomen = _Abdomen(canvas, rng, contrast)
    abdomen.wall()
    abdomen.bowel()
    abdomen.pancreas()
    abdomen.stomach()
    abdomen.spleen()
    abdomen.liver()
    abdomen.chest()
    abdomen.kidneys()
    abdomen.back()
    abdomen.ribs()
    abdomen.vessels()
    _paint_table(canvas, abdomen.depth)


def _paint_table(canvas: Canvas, depth: np.ndarray) -> None:
    """Put the patient on the scanner's table: a thin curved shell filled with foam, not bent with the patient."""
    _, y, x = np.meshgrid(*canvas.axes, indexing="ij", sparse=True)
    back = 112 * canvas.size[1] + canvas.shift[1]
    below = y - (back + 4 - 0.0012 * x**2)  # mm below the top of the table
    edge = np.minimum(np.minimum(below, 26 - below), 205 - np.abs(x))
    half = 2.4 * (canvas.axes[2][1] - canvas.axes[2][0])  # shaded by hand: a real shell is thinner than a sample
    shell = np.clip((half - np.abs(edge - half)) / half * 2, 0, 1)
    canvas.paint((slice(None),) * 3, (depth <= 0) & (edge > 0), -900 + 900 * shell)


def _largest_piece(inside: np.ndarray) -> np.ndarray:
    """Keep the largest connected piece of a body."""
    pieces, count = ndimage.label(inside)
    if count < 2:
        return inside
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def _smooth_max(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Join two bodies with a rounded seam."""
    return np.logaddexp(a / width_mm, b / width_mm) * width_mm
