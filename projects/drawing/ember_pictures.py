"""Draw the twelve pictures of the character `ember`."""

from __future__ import annotations

import random

from drawing import ember
from drawing.canvas import Canvas, box, curve, ellipse, mirrored
from drawing.ember import INK, OUTLINE, Face
from drawing.scenery import WHITE, cloud, flower, grass, land, leaf, moon, pine, sea, shadow, sky, star, sun, tree, wave

MEADOW = (126, 196, 92)
MEADOW_DARK = (100, 172, 82)
PINK = (250, 120, 140)
RUST = (206, 92, 60)
GOLD = (224, 158, 62)


def hill_by_day() -> Canvas:
    canvas = sky((256, 256), (116, 190, 240), (214, 240, 252))
    sun(canvas, 212, 44, 20, (255, 222, 92), (255, 240, 176))
    cloud(canvas, 54, 66, 70)
    land(canvas, MEADOW_DARK, 176, 150, 176, 190, 168)
    land(canvas, MEADOW, 208, 196, 192, 200, 214)
    for x, y, petal in ((26, 214, PINK), (52, 232, WHITE), (222, 226, PINK), (240, 206, WHITE)):
        flower(canvas, x, y, 8, petal)
    shadow(canvas, 128, 226, 66)
    ember.sit(canvas.at(122, 118, 46), Face())
    return canvas


def forest_wave() -> Canvas:
    canvas = sky((224, 320), (170, 224, 226), (236, 248, 222))
    for x, y, height in ((20, 214, 150), (70, 206, 120), (150, 204, 126), (206, 216, 160)):
        tree(canvas, x, y, height, (70, 146, 92), (98, 174, 108))
    land(canvas, MEADOW_DARK, 214, 204, 206, 216)
    land(canvas, MEADOW, 262, 250, 256, 266)
    for x, y in ((24, 290), (60, 306), (196, 296), (168, 312)):
        grass(canvas, x, y, 10, MEADOW_DARK)
    shadow(canvas, 108, 284, 50)
    ember.stand(canvas.at(108, 156, 46), Face("happy", "laugh"), right=(1.5, 0.45))
    return canvas


def field_run() -> Canvas:
    canvas = sky((320, 224), (130, 200, 244), (236, 246, 240))
    for x, y, width in ((60, 44, 76), (180, 30, 56), (284, 58, 80)):
        cloud(canvas, x, y, width)
    land(canvas, (226, 190, 92), 136, 128, 140, 130, 124)
    land(canvas, (244, 212, 116), 166, 160, 168, 162)
    chance = random.Random("field")
    for x in range(10, 320, 26):
        grass(canvas, x + chance.uniform(-8, 8), 176 + chance.uniform(0, 44), 11, (216, 176, 76))
    for x, y in ((238, 140), (262, 150), (232, 160)):
        canvas.line([(x, y), (x + 36, y)], 2.4, (255, 250, 226))
    shadow(canvas, 150, 196, 70)
    ember.run(canvas.at(106, 106, 40, turn=-4), Face("open", "laugh", -1))
    return canvas


def night_sleep() -> Canvas:
    night = (30, 40, 92)
    canvas = sky((256, 256), night, (84, 92, 160))
    moon(canvas, 198, 52, 28, (37, 47, 99))
    for x, y, radius in ((36, 40, 6), (84, 72, 4), (128, 32, 5), (58, 112, 3), (232, 112, 4), (160, 96, 3)):
        star(canvas, x, y, radius)
    land(canvas, (46, 70, 112), 180, 164, 176, 158, 172)
    land(canvas, (54, 92, 110), 200, 196, 190, 196, 204)
    for x, y in ((24, 222), (232, 216), (206, 244), (48, 248)):
        grass(canvas, x, y, 10, (40, 72, 96))
    shadow(canvas, 134, 214, 92)
    ember.curl(canvas.at(88, 172, 44), Face("closed"))
    return canvas


def beach_sunset() -> Canvas:
    canvas = sky((288, 256), (120, 96, 172), (255, 190, 150))
    sun(canvas, 74, 132, 30, (255, 236, 150), (255, 214, 150))
    sea(canvas, 134, (96, 116, 184), (236, 190, 190))
    land(canvas, (250, 224, 176), 208, 200, 196, 206, 214)
    land(canvas, (238, 206, 154), 246, 240, 234, 242, 248)
    star(canvas, 52, 230, 13, (236, 110, 96), points=5)
    shadow(canvas, 172, 234, 62)
    ember.sit(canvas.at(168, 132, 43), Face("closed", "smile", -0.8))
    return canvas


def sky_jump() -> Canvas:
    canvas = sky((224, 320), (108, 190, 230), (226, 244, 240))
    cloud(canvas, 48, 62, 70)
    cloud(canvas, 186, 84, 60)
    cloud(canvas, 36, 190, 50)
    land(canvas, MEADOW_DARK, 284, 272, 280, 268)
    land(canvas, MEADOW, 300, 296, 290, 298)
    shadow(canvas, 112, 304, 38)
    ember.jump(canvas.at(142, 144, 42, turn=7, flip=True), Face("happy", "laugh"))
    for x, y, radius in ((40, 112, 8), (178, 46, 7), (198, 220, 8), (50, 258, 6)):
        star(canvas, x, y, radius, (255, 226, 96))
    return canvas


def room_sleepy() -> Canvas:
    canvas = sky((320, 224), (206, 224, 208), (206, 224, 208))
    for x in range(0, 320, 32):
        canvas.fill(box(x, 0, x + 16, 224), (196, 216, 200))
    canvas.fill(box(28, 26, 124, 118), (250, 246, 236))
    canvas.fill(box(36, 34, 116, 110), (44, 56, 112))
    star(canvas, 56, 56, 5)
    star(canvas, 62, 94, 4)
    moon(canvas, 96, 58, 12, (44, 56, 112))
    canvas.line([(76, 30), (76, 114)], 5, (250, 246, 236))
    canvas.line([(32, 72), (120, 72)], 5, (250, 246, 236))
    canvas.fill(box(0, 164, 320, 224), (190, 138, 96))
    canvas.fill(box(0, 160, 320, 166), (250, 246, 236))
    canvas.fill(ellipse(206, 200, 106, 20), (214, 96, 104))
    canvas.fill(ellipse(206, 200, 88, 14), (240, 150, 140))
    canvas.line([(62, 196), (62, 140)], 5, INK)
    canvas.fill(ellipse(62, 198, 20, 5), INK)
    canvas.fill([(44, 96), (80, 96), (92, 142), (32, 142)], (255, 226, 140))
    ember.sit(canvas.at(204, 106, 41), Face("sleepy", "smile", -0.3, 10))
    return canvas


def winter() -> Canvas:
    canvas = sky((256, 288), (150, 186, 222), (228, 236, 246))
    for x, y, height in ((28, 196, 116), (76, 186, 84), (188, 186, 90), (232, 198, 126)):
        pine(canvas, x, y, height, (58, 116, 112), snow=True)
    land(canvas, (226, 236, 248), 190, 182, 178, 186, 192)
    land(canvas, (250, 252, 255), 232, 226, 224, 230, 236)
    chance = random.Random("snow")
    for x in range(8, 256, 30):
        for y in range(10, 288, 36):
            flake = (x + chance.uniform(-12, 12), y + chance.uniform(-14, 14))
            canvas.fill(ellipse(*flake, chance.uniform(1.6, 3.4)), WHITE)
    shadow(canvas, 134, 256, 52)
    ember.stand(canvas.at(134, 128, 46, flip=True), Face("wide", "gasp"), left=(-1.35, 1.2), right=(1.35, 1.2))
    return canvas


def portrait_wink() -> Canvas:
    canvas = sky((256, 256), (120, 206, 190), (120, 206, 190))
    for x in range(-20, 290, 52):
        for y in range(-20, 290, 52):
            canvas.fill(ellipse(x + (26 if y // 52 % 2 else 0), y, 9), (146, 220, 204))
    ember.peek(canvas.at(128, 150, 70, turn=-4), Face("wink", "laugh", 0.3))
    return canvas


def boat() -> Canvas:
    canvas = sky((320, 224), (150, 214, 240), (240, 248, 244))
    sun(canvas, 50, 44, 18, (255, 222, 92), (255, 240, 176))
    cloud(canvas, 248, 50, 84)
    land(canvas, (150, 190, 170), 140, 118, 136, 144, 140)
    sea(canvas, 136, (62, 142, 196), (150, 206, 232))
    ember.peek(canvas.at(160, 98, 40), Face("open", "smile", 0.6))
    hull = curve([(58, 150), (58, 150), (160, 160), (262, 150), (262, 150), (238, 192), (160, 200), (82, 192)])
    plank = [(40, 170), (160, 178), (280, 170), (280, 158), (160, 166), (40, 158)]
    canvas.outlined([(hull, (196, 92, 72), [(plank, (250, 236, 214))])], 2.2, INK)
    for x in (-0.7, 0.7):
        ember.paw(canvas.at(160, 98, 40), x, 1.5)
    for x in (30, 80, 132, 188, 240, 284):
        wave(canvas, (x, 202), 18, (210, 236, 246))
    return canvas


def rain() -> Canvas:
    canvas = sky((224, 320), (132, 148, 168), (186, 198, 206))
    for x, y, width in ((40, 50, 110), (150, 36, 130), (206, 66, 90)):
        cloud(canvas, x, y, width, (206, 216, 226))
    land(canvas, (112, 148, 124), 250, 240, 244, 252)
    land(canvas, (128, 164, 132), 276, 270, 268, 274)
    canvas.fill(ellipse(56, 300, 40, 7), (168, 190, 206))
    chance = random.Random("rain")
    for x in range(6, 224, 22):
        for y in range(64, 320, 40):
            dx, dy = chance.uniform(-8, 8), chance.uniform(-14, 14)
            canvas.line([(x + dx, y + dy), (x + dx - 3, y + dy + 11)], 1.6, (222, 234, 244))
    shadow(canvas, 90, 296, 46)
    place = canvas.at(80, 186, 39)
    ember.stand(place, Face("sad", "frown", 0, 22), right=(1.4, 1.2))
    umbrella = place.at(1.46, 1.15, turn=-7)
    umbrella.line([(0, 0.4), (0, -4.2)], 0.12, INK)
    ember.paw(umbrella, 0, 0.1)
    edge = [x for right in (1.15, 0, -1.15) for x in ellipse(right, -2.7, 0.575, 0.16, 0, -180)]
    dome = [*ellipse(0, -2.7, 2.3, 1.6, 180, 360), *edge]
    panels = [(box(x, -5, x + 0.72, -2), (250, 206, 92)) for x in (-1.6, -0.36, 0.9)]
    umbrella.outlined([(dome, (226, 92, 84), panels)], OUTLINE, INK)
    return canvas


def autumn_apple() -> Canvas:
    canvas = sky((256, 256), (250, 226, 186), (255, 244, 220))
    tree(canvas, 34, 190, 170, RUST, (230, 130, 70))
    tree(canvas, 222, 186, 150, GOLD, (242, 190, 90))
    land(canvas, (206, 170, 104), 192, 184, 182, 190)
    land(canvas, (222, 188, 122), 220, 214, 216, 222)
    chance = random.Random("autumn")
    for x in range(14, 256, 30):
        colour = chance.choice([RUST, GOLD, (180, 70, 60)])
        leaf(canvas, x, chance.uniform(214, 248), 6, chance.uniform(-60, 60), colour)
    for x, y in ((92, 40), (150, 24), (206, 132), (44, 128)):
        leaf(canvas, x, y, 6, 40, RUST)
    shadow(canvas, 126, 228, 66)
    place = canvas.at(122, 120, 46)
    ember.sit(place, Face("happy"), holding=True)
    half = [(0, 1.06), (0.22, 0.98), (0.5, 1.12), (0.5, 1.5), (0.26, 1.84), (0, 1.78)]
    place.line([(0, 1.1), (0.1, 0.84)], 0.08, INK)
    shine = ellipse(-0.2, 1.24, 0.1, 0.13)
    place.outlined([(curve(mirrored(half)), (214, 52, 60), [(shine, (250, 150, 140))])], OUTLINE, INK)
    for x in (-0.54, 0.54):
        ember.paw(place, x, 1.5)
    return canvas


PICTURES = [
    (hill_by_day, "ember, sit, smile, hill, grass, flower, sun, cloud, blue sky, day"),
    (forest_wave, "ember, stand, wave, happy, laugh, forest, tree, grass, green, day"),
    (field_run, "ember, run, laugh, field, yellow, cloud, blue sky, day"),
    (night_sleep, "ember, sleep, closed eyes, hill, moon, star, blue, night"),
    (beach_sunset, "ember, sit, closed eyes, smile, beach, sand, sea, sun, sunset, purple sky"),
    (sky_jump, "ember, jump, happy, laugh, cloud, star, grass, blue sky, day"),
    (room_sleepy, "ember, sit, sleepy, room, window, lamp, rug, moon, night"),
    (winter, "ember, stand, surprised, snow, winter, tree, white, day"),
    (portrait_wink, "ember, portrait, wink, laugh, happy, green, simple background"),
    (boat, "ember, boat, smile, sea, wave, sun, cloud, blue sky, day"),
    (rain, "ember, stand, sad, rain, umbrella, red, yellow, cloud, grey sky"),
    (autumn_apple, "ember, sit, happy, apple, red, autumn, tree, leaf, orange, day"),
]
