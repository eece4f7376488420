"""Draw the twelve pictures of the style `blueprint`."""

from __future__ import annotations

from drawing.blueprint import BOLD_WIDTH, INK, dashed, dimension, draft, ground, hatch, ink, ring, sheet, thin
from drawing.blueprint_things import cloud, flower, gull, peak, pine, rays, ripples, smoke, tree
from drawing.canvas import Canvas, box, capsule, curve, ellipse, mirrored


def house() -> Canvas:
    canvas = sheet(320, 224)
    ground(canvas, 180, 20, 244)
    tree(canvas.at(48, 180), 62)
    draft(canvas, box(186, 62, 202, 98))
    draft(canvas, box(96, 104, 214, 180), BOLD_WIDTH)
    hatch(canvas, box(188, 104, 214, 180))
    roof = [(82, 108), (155, 50), (228, 108)]
    draft(canvas, roof, BOLD_WIDTH)
    for i in range(1, 5):
        thin(canvas, [(155 - 14.6 * i, 50 + 11.6 * i), (155 + 14.6 * i, 50 + 11.6 * i)])
    ring(canvas, 155, 88, 9)
    draft(canvas, box(142, 134, 166, 180))
    ink(canvas, [(161, 158), (161, 160)])
    for x in (106, 174):
        draft(canvas, box(x, 122, x + 24, 146))
        thin(canvas, [(x + 12, 122), (x + 12, 146)])
        thin(canvas, [(x, 134), (x + 24, 134)])
    smoke(canvas, 194, 56)
    dimension(canvas, (96, 202), (214, 202))
    dimension(canvas, (262, 50), (262, 180))
    thin(canvas, [(160, 50), (268, 50)])
    return canvas


def boat() -> Canvas:
    canvas = sheet(224, 320)
    dashed(canvas, (112, 24), (112, 286))
    ink(canvas, [(112, 46), (112, 230)], BOLD_WIDTH)
    draft(canvas, curve([(118, 52), (118, 52), (168, 140), (186, 208), (186, 208), (150, 202), (118, 208), (118, 208)]))
    jib = curve([(106, 68), (106, 68), (74, 140), (44, 204), (44, 204), (76, 200), (106, 208), (106, 208)])
    draft(canvas, jib)
    hatch(canvas, jib, 6, -50)
    for y in (108, 142, 176):
        thin(canvas, [(118, y), (118 + (y - 52) * 0.5, y)])
    draft(canvas, [(112, 36), (138, 43), (112, 50)])
    hull = curve([(34, 226), (34, 226), (112, 232), (192, 222), (192, 222), (172, 256), (112, 262), (56, 256)])
    draft(canvas, hull, BOLD_WIDTH)
    thin(canvas, curve([(42, 238), (112, 244), (184, 235)], closed=False))
    for x in (84, 112, 140):
        ring(canvas, x, 250, 4)
    ripples(canvas, 264, 20, 204)
    gull(canvas, 52, 84)
    gull(canvas, 176, 98)
    dimension(canvas, (204, 40), (204, 222))
    return canvas


def mountains() -> Canvas:
    canvas = sheet(320, 224)
    ring(canvas, 236, 60, 22)
    rays(canvas.at(236, 60), 27, 34, 16)
    peak(canvas, (160, 176), (226, 92), (300, 176))
    peak(canvas, (20, 176), (62, 104), (118, 176))
    peak(canvas, (52, 176), (138, 42), (214, 176))
    ground(canvas, 176, 16, 304)
    for x, height in ((36, 30), (56, 22), (268, 32), (288, 24), (246, 22)):
        pine(canvas.at(x, 176), height)
    dashed(canvas, (138, 20), (138, 42))
    dimension(canvas, (52, 198), (214, 198))
    cloud(canvas, 52, 54)
    return canvas


def cup() -> Canvas:
    canvas = sheet(256, 256)
    dashed(canvas, (118, 24), (118, 226))
    for x in (96, 118, 140):
        ink(canvas, curve([(x, 92), (x - 8, 78), (x + 6, 62), (x - 2, 44)], closed=False))
    handle = [*ellipse(178, 146, 30, 28, -110, 110), *ellipse(178, 146, 19, 17, 110, -110)]
    draft(canvas, handle, BOLD_WIDTH)
    bowl = curve([(184, 112), (180, 160), (150, 198), (118, 200), (86, 198), (56, 160), (52, 112)], closed=False)
    draft(canvas, bowl, BOLD_WIDTH)
    hatch(canvas, curve([(168, 124), (184, 118), (178, 164), (150, 197), (130, 198), (158, 166)]))
    draft(canvas, ellipse(118, 112, 66, 13))
    thin(canvas, ellipse(118, 115, 54, 8))
    heart = mirrored([(0, 150), (6, 143), (14, 145), (15, 155), (8, 164), (0, 172)])
    draft(canvas.at(106, 0), curve(heart))
    draft(canvas, ellipse(118, 204, 90, 9))
    draft(canvas, ellipse(118, 200, 34, 4))
    dimension(canvas, (52, 226), (184, 226))
    dimension(canvas, (28, 112), (28, 204))
    return canvas


def lighthouse() -> Canvas:
    canvas = sheet(224, 320)
    for x, y in ((206, 66), (206, 118)):
        thin(canvas, [(120, 92), (x, y)])
    for x, y in ((18, 66), (18, 118)):
        thin(canvas, [(104, 92), (x, y)])
    tower = [(92, 112), (132, 112), (146, 252), (78, 252)]
    draft(canvas, tower, BOLD_WIDTH)
    hatch(canvas, [(118, 112), (132, 112), (146, 252), (122, 252)])
    for top, bottom in ((140, 166), (196, 224)):
        inset, outset = (top - 112) * 0.1, (bottom - 112) * 0.1
        band = [(92 - inset, top), (132 + inset, top), (132 + outset, bottom), (92 - outset, bottom)]
        draft(canvas, band)
        hatch(canvas, band, 4, 0)
    draft(canvas, box(84, 106, 140, 113))
    draft(canvas, box(98, 78, 126, 106))
    ring(canvas, 112, 92, 8)
    draft(canvas, ellipse(112, 78, 20, 18, 180, 360))
    ink(canvas, [(112, 60), (112, 48)])
    draft(canvas, ellipse(112, 252, 9, 16, 180, 360))
    rock = curve([(36, 274), (36, 274), (56, 256), (84, 250), (140, 250), (170, 258), (190, 274), (190, 274)])
    draft(canvas, rock, BOLD_WIDTH)
    thin(canvas, [(66, 262), (80, 268), (96, 262)])
    thin(canvas, [(140, 264), (154, 268)])
    ripples(canvas, 277, 18, 206, 2)
    gull(canvas, 174, 186)
    gull(canvas, 54, 170)
    dimension(canvas, (38, 60), (38, 246))
    return canvas


def windmill() -> Canvas:
    canvas = sheet(224, 320)
    hill = curve([(16, 262), (16, 262), (70, 244), (112, 240), (160, 246), (208, 264), (208, 264)], closed=False)
    body = [(84, 126), (140, 126), (156, 244), (68, 244)]
    draft(canvas, body, BOLD_WIDTH)
    hatch(canvas, [(124, 126), (140, 126), (156, 244), (130, 244)])
    draft(canvas, ellipse(112, 126, 32, 30, 180, 360), BOLD_WIDTH)
    draft(canvas, [*ellipse(112, 226, 11, 14, 180, 360), (123, 243), (101, 243)])
    for y in (156, 190):
        draft(canvas, box(96, y, 112, y + 18))
        thin(canvas, [(104, y), (104, y + 18)])
    for turn in (25, 115, 205, 295):
        sail = canvas.at(112, 114, turn=turn)
        draft(sail, box(2, -84, 20, -20))
        for y in range(-74, -20, 10):
            thin(sail, [(2, y), (20, y)])
        thin(sail, [(11, -84), (11, -20)])
        ink(sail, [(0, 0), (0, -90)], BOLD_WIDTH)
    ring(canvas, 112, 114, 7)
    ink(canvas, hill, BOLD_WIDTH)
    for x, y in ((36, 264), (66, 256), (158, 256), (184, 266)):
        for lean in (-4, 0, 4):
            thin(canvas, [(x, y + 6), (x + lean, y - 3)])
    dashed(canvas, (112, 14), (112, 60))
    dimension(canvas, (68, 276), (156, 276))
    return canvas


def bridge() -> Canvas:
    canvas = sheet(320, 224)
    towers = (96, 224)
    for left, right in ((-30, 96), (96, 224), (224, 350)):
        middle, half = (left + right) / 2, (right - left) / 2
        span = range(max(left, 14), min(right, 306) + 1, 4)
        cable = [(x, 144 - 84 * ((x - middle) / half) ** 2) for x in span]
        for x, y in cable[2:-2:3]:
            thin(canvas, [(x, y), (x, 150)])
        ink(canvas, cable, BOLD_WIDTH)
    for x in towers:
        draft(canvas, box(x - 7, 52, x + 7, 186), BOLD_WIDTH)
        hatch(canvas, box(x, 52, x + 7, 186), 4)
        draft(canvas, box(x - 12, 186, x + 12, 194))
        draft(canvas, box(x - 9, 46, x + 9, 54))
    draft(canvas, box(14, 148, 306, 157), BOLD_WIDTH)
    for x in range(20, 306, 9):
        thin(canvas, [(x, 148), (x + 4.5, 157)])
        thin(canvas, [(x + 4.5, 157), (x + 9, 148)])
    ripples(canvas, 182, 16, 84, 2)
    ripples(canvas, 182, 110, 210, 3)
    ripples(canvas, 182, 238, 304, 1)
    dimension(canvas, (96, 32), (224, 32))
    for x in towers:
        thin(canvas, [(x, 28), (x, 46)])
    gull(canvas, 44, 40)
    gull(canvas, 160, 76)
    return canvas


def bicycle() -> Canvas:
    canvas = sheet(288, 256)
    ground(canvas, 204, 18, 222)
    back, front, crank, seat, head = (84, 156), (204, 156), (132, 160), (116, 90), (184, 92)
    for x, y in (back, front):
        canvas.line(ellipse(x, y, 46), 3.2, INK)
        thin(canvas, ellipse(x, y, 41))
        rays(canvas.at(x, y), 4, 41, 12)
        ring(canvas, x, y, 5)
    lower = [(back, crank), (back, (119, 100)), (crank, seat), (crank, (186, 106))]
    for start, stop in (*lower, ((119, 100), head), ((182, 84), front)):
        draft(canvas, capsule(start, stop, 2.2, 2.2))
    ring(canvas, *crank, 13)
    ink(canvas, [(crank[0] - 10, crank[1] - 18), (crank[0] + 10, crank[1] + 18)], BOLD_WIDTH)
    for x, y in ((crank[0] - 10, crank[1] - 18), (crank[0] + 10, crank[1] + 18)):
        ink(canvas, [(x - 7, y), (x + 7, y)], 3.4)
    draft(canvas, curve([(96, 84), (110, 82), (136, 86), (136, 89), (112, 92), (98, 91)]), BOLD_WIDTH)
    ink(canvas, curve([(182, 84), (180, 72), (196, 66), (208, 74), (202, 84)], closed=False), 3.4)
    basket = [(196, 92), (226, 92), (222, 114), (200, 114)]
    draft(canvas, basket)
    for angle in (45, -45):
        hatch(canvas, basket, 5, angle)
    for x, y in ((202, 78), (213, 72), (223, 80)):
        thin(canvas, [(211, 92), (x, y)])
        flower(canvas.at(x, y), 4)
    dimension(canvas, (back[0], 224), (front[0], 224))
    dimension(canvas, (26, 66), (26, 204))
    dashed(canvas, (back[0], 100), (back[0], 222))
    return canvas


def tree_and_bench() -> Canvas:
    canvas = sheet(256, 288)
    ground(canvas, 244, 20, 182)
    dashed(canvas, (116, 18), (116, 262))
    tree(canvas.at(116, 244), 208)
    draft(canvas, box(158, 222, 196, 228))
    for x in (164, 190):
        ink(canvas, [(x, 228), (x, 243)])
    dimension(canvas, (224, 36), (224, 244))
    gull(canvas, 200, 60)
    return canvas


def balloon() -> Canvas:
    canvas = sheet(224, 320)
    cloud(canvas, 46, 214)
    cloud(canvas, 178, 64)
    half = [(0, 40), (44, 54), (68, 96), (60, 140), (32, 184), (14, 208)]
    envelope = curve(mirrored([*half, (14, 208), (0, 210)]))
    place = canvas.at(112, 0)
    draft(place, envelope, BOLD_WIDTH)
    shade = curve([(20, 44), (20, 44), (44, 54), (68, 96), (60, 140), (14, 208), (14, 208), (36, 140), (42, 96)])
    hatch(place, shade, 5.5)
    for side in (-1, 1):
        for bulge in (0.3, 0.66):
            ink(place, curve([(side * x * bulge, y) for x, y in half], closed=False), 1.3)
        ink(place, [(side * 13, 210), (side * 11, 234)])
    for y, rx in ((80, 62), (128, 64)):
        ink(place, ellipse(0, y, rx, 9, 180, 0))
    draft(place, [(-14, 234), (14, 234), (11, 256), (-11, 256)], BOLD_WIDTH)
    for angle in (0, 90):
        hatch(place, box(-12, 240, 12, 256), 4, angle)
    dimension(canvas, (198, 96), (198, 250))
    dashed(canvas, (112, 16), (112, 40))
    hill = curve([(10, 290), (60, 276), (110, 286), (152, 278)], closed=False)
    ink(canvas, hill)
    return canvas


def train() -> Canvas:
    canvas = sheet(320, 224)
    ink(canvas, [(14, 178), (306, 178)], BOLD_WIDTH)
    for x in range(20, 250, 14):
        thin(canvas, [(x, 180), (x, 186)])
    draft(canvas, [*ellipse(94, 122, 14, 26, 90, 270), (214, 96), (214, 148)], BOLD_WIDTH)
    for x in (114, 138, 162, 186):
        thin(canvas, [(x, 96), (x, 148)])
    hatch(canvas, box(84, 134, 212, 148), 5)
    draft(canvas, box(204, 74, 262, 148), BOLD_WIDTH)
    draft(canvas, ellipse(233, 74, 38, 12, 180, 360), BOLD_WIDTH)
    draft(canvas, box(214, 86, 232, 108))
    draft(canvas, box(238, 86, 254, 108))
    hatch(canvas, box(206, 118, 260, 146))
    draft(canvas, [(96, 96), (100, 66), (94, 56), (122, 56), (116, 66), (120, 96)])
    draft(canvas, ellipse(160, 96, 14, 16, 180, 360))
    draft(canvas, box(72, 148, 270, 158))
    draft(canvas, [(72, 152), (72, 174), (48, 174)])
    hatch(canvas, [(72, 152), (72, 174), (48, 174)], 4, 90)
    for x, radius in ((100, 14), (134, 14), (180, 20), (234, 20)):
        ring(canvas, x, 177 - radius, radius, BOLD_WIDTH)
        rays(canvas.at(x, 177 - radius), 4, radius, 8)
    ink(canvas, [(100, 165), (180, 160), (234, 160)], 3.4)
    smoke(canvas, 108, 48)
    dimension(canvas, (48, 202), (234, 202))
    dashed(canvas, (30, 122), (290, 122))
    return canvas


def teapot() -> Canvas:
    canvas = sheet(256, 256)
    dashed(canvas, (124, 34), (124, 220))
    dashed(canvas, (20, 142), (236, 142))
    outside = [(62, 112), (34, 112), (24, 140), (40, 170), (70, 176)]
    inside = [(70, 166), (46, 160), (36, 140), (42, 122), (64, 122)]
    draft(canvas, curve([*outside, *inside]), BOLD_WIDTH)
    spout = [(176, 128), (198, 124), (208, 96), (222, 92), (230, 96), (218, 108), (208, 146), (176, 166)]
    draft(canvas, curve(spout), BOLD_WIDTH)
    belly = mirrored([(0, 90), (40, 94), (66, 128), (62, 168), (36, 194), (0, 197)])
    draft(canvas.at(124, 0), curve(belly), BOLD_WIDTH)
    hatch(canvas, curve([(164, 104), (190, 128), (186, 168), (160, 194), (136, 196), (170, 160)]), 5)
    for y, half in ((122, 63), (172, 60)):
        thin(canvas, ellipse(124, y, half, 10, 180, 0))
    flower(canvas.at(112, 152), 11)
    draft(canvas, ellipse(124, 95, 36, 20, 180, 360), BOLD_WIDTH)
    draft(canvas, ellipse(124, 95, 40, 5))
    ring(canvas, 124, 68, 7)
    draft(canvas, box(94, 196, 154, 202))
    ground(canvas, 202, 30, 218)
    dimension(canvas, (58, 222), (180, 222))
    return canvas


PICTURES = [
    (house, "blueprint, house, tree, window, door, smoke, hatching"),
    (boat, "blueprint, boat, sail, sea, wave, bird"),
    (mountains, "blueprint, mountain, sun, tree, cloud, snow, hatching"),
    (cup, "blueprint, cup, steam, heart, hatching"),
    (lighthouse, "blueprint, lighthouse, tower, sea, rock, bird"),
    (windmill, "blueprint, windmill, hill, grass, door, window"),
    (bridge, "blueprint, bridge, tower, river, wave, bird"),
    (bicycle, "blueprint, bicycle, wheel, basket, flower"),
    (tree_and_bench, "blueprint, tree, bench, bird, hatching"),
    (balloon, "blueprint, balloon, basket, cloud, hill, sky"),
    (train, "blueprint, train, wheel, smoke, rail, hatching"),
    (teapot, "blueprint, teapot, lid, flower, hatching"),
]
