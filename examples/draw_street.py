"""Draw `street.jpg`, the image of the examples: a street seen from a car, the same on every run."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, HORIZON = 960, 540, 250
EYE, FOCAL = 1.5, 560  # metres above the road, pixels
FINE = 2  # drawn at twice the size, for smooth edges
rng = random.Random(4)


def at(x: float, y: float, z: float) -> tuple[float, float]:
    """Where a point x metres to the right, y above the road and z ahead is seen."""
    return (WIDTH / 2 + FOCAL * x / z) * FINE, (HORIZON + FOCAL * (EYE - y) / z) * FINE


def shade(colour: tuple, light: float) -> tuple:
    return tuple(min(int(channel * light), 255) for channel in colour)


def floor(x0: float, x1: float, z0: float, z1: float, fill: tuple, y: float = 0) -> None:
    draw.polygon([at(x0, y, z0), at(x1, y, z0), at(x1, y, z1), at(x0, y, z1)], fill)


def wall(x: float, y0: float, y1: float, z0: float, z1: float, fill: tuple) -> None:
    draw.polygon([at(x, y0, z0), at(x, y1, z0), at(x, y1, z1), at(x, y0, z1)], fill)


def front(x0: float, x1: float, y0: float, y1: float, z: float, fill: tuple, radius: float = 0) -> None:
    draw.rounded_rectangle((*at(x0, y1, z), *at(x1, y0, z)), radius * FOCAL / z * FINE, fill)


def building(x: float, z0: float, z1: float, height: float, colour: tuple) -> None:
    light = 0.8 if x < 0 else 1.05
    for low, high, tone in ((0, height, 1), (height - 0.4, height, 0.7), (0, 0.7, 0.6)):
        wall(x, low, high, z0, z1, shade(colour, light * tone))
    for y in np.arange(1.1, height - 2, 3.2):
        for z in np.arange(z0 + 0.8, z1 - 1, 2.7):
            glass = rng.choice([(74, 92, 110), (96, 120, 142), (60, 74, 88), (128, 150, 166)])
            wall(x, y - 0.14, y + 1.84, z - 0.14, z + 1.34, shade((226, 222, 212), light))
            wall(x, y, y + 1.7, z, z + 1.2, shade(glass, light))


def tree(x: float, z: float) -> None:
    front(x - 0.14, x + 0.14, 0, 3, z, (84, 64, 48))
    for i in range(160):
        dx, dy, size = rng.gauss(0, 0.75), rng.gauss(4.2, 0.8), rng.uniform(0.22, 0.5)
        green = shade((66, 112, 48), 0.3 + 0.12 * dy + 0.1 * dx + i / 600)
        front(x + dx - size, x + dx + size, dy - size, dy + size, z, green, size)


def car(x: float, z: float, colour: tuple, lights: tuple) -> None:
    floor(x - 1.05, x + 1.05, z - 0.2, z + 4, (52, 53, 56))  # its shadow
    for side in (-0.72, 0.72):
        front(x + side - 0.13, x + side + 0.13, 0, 0.5, z, (24, 24, 26), 0.06)
    front(x - 0.72, x + 0.72, 0.8, 1.5, z, shade(colour, 0.8), 0.25)
    front(x - 0.62, x + 0.62, 0.9, 1.4, z, (58, 74, 88), 0.18)
    front(x - 0.9, x + 0.9, 0.28, 0.98, z, colour, 0.16)
    front(x - 0.88, x + 0.88, 0.26, 0.46, z, (44, 46, 50), 0.08)
    front(x - 0.26, x + 0.26, 0.5, 0.64, z, (236, 236, 228))
    for side in (-0.68, 0.68):
        front(x + side - 0.15, x + side + 0.15, 0.66, 0.84, z, lights, 0.05)


def person(x: float, z: float, coat: tuple, trousers: tuple) -> None:
    for leg in (-0.17, 0.17):
        draw.line([at(x + leg / 3, 0.9, z), at(x + leg, 0.03, z)], trousers, int(0.17 * FOCAL / z * FINE))
    front(x - 0.31, x + 0.31, 0.85, 1.43, z, shade(coat, 0.8), 0.08)  # arms
    front(x - 0.22, x + 0.22, 0.78, 1.47, z, coat, 0.12)
    front(x - 0.12, x + 0.12, 1.5, 1.79, z, (62, 44, 34), 0.11)  # hair
    front(x - 0.11, x + 0.11, 1.48, 1.7, z, (206, 160, 132), 0.09)


def sign(x: float, z: float) -> None:
    front(x - 0.06, x + 0.06, 0, 3.6, z, (120, 124, 128))
    front(x - 0.43, x + 0.43, 2.7, 3.6, z, (238, 240, 240), 0.12)
    front(x - 0.38, x + 0.38, 2.75, 3.55, z, (24, 86, 170), 0.1)
    draw.polygon([at(x, 3.42, z), at(x - 0.26, 2.95, z), at(x + 0.26, 2.95, z)], (244, 246, 246))


fade = np.linspace(0, 2, HEIGHT * FINE)[:, None, None].clip(0, 1)
sky = (1 - fade) * (96, 150, 212) + fade * (224, 234, 240)
image = Image.fromarray(np.repeat(sky.astype(np.uint8), WIDTH * FINE, axis=1))
draw = ImageDraw.Draw(image)
for x, y, size in [(-40, 62, 30), (22, 66, 22), (36, 61, 30), (-12, 44, 20), (4, 72, 14), (24, 38, 16)]:
    front(x - size / 2, x + size / 2, y, y + size / 5, 200, (248, 250, 252), size / 10)  # clouds
image.paste(image.filter(ImageFilter.GaussianBlur(12 * FINE)))
for x in range(-60, 60, 5):  # the town beyond
    front(x, x + 5, 0, rng.uniform(14, 30), 200, shade((168, 180, 190), rng.uniform(0.9, 1.05)))
floor(-60, 60, 1, 200, (176, 172, 164))
floor(-4.75, 4.75, 1, 200, (128, 126, 122))  # kerbs
floor(-4.6, 4.6, 1, 200, (86, 88, 92))
for x in (-4.2, 4.2):
    floor(x - 0.07, x + 0.07, 1, 200, (214, 212, 204))
for z in range(2, 120, 6):
    floor(-0.08, 0.08, z, z + 3, (232, 230, 222))
colours = [(176, 106, 84), (204, 186, 156), (150, 128, 116), (188, 148, 112), (164, 168, 172), (120, 136, 140)]
for z in range(106, 0, -11):
    for x in (-8.5, 8.5):
        building(x, max(z, 2.5), z + 11, rng.uniform(8, 15), rng.choice(colours))
for z in (62, 50, 40, 31, 23):
    tree(-6.3, z)
    tree(6.6, z + 4)
car(-2.2, 34, (206, 208, 212), (255, 248, 214))
car(2.1, 15, (160, 36, 40), (236, 60, 50))
person(-6.4, 14, (44, 72, 122), (46, 46, 54))
person(6.9, 19, (196, 148, 60), (58, 60, 78))
sign(5.4, 11)

small = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
grain = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH, 1))
Image.fromarray((small + grain).clip(0, 255).astype(np.uint8)).save(Path(__file__).with_name("street.jpg"), quality=88)
