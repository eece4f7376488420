"""The tokenizer of the built-in base: CLIP's byte-level BPE with a small vocabulary, everyday tags one token each."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

from lorabuild.data.vocabulary import WORD_END, laid_out

# Everyday words of captions. Each becomes one token; any other word falls into pieces, in the end into bytes.
WORDS = """
a an the and of in on with at by to from for no not girl boy woman man person people child girls boys couple group
crowd solo character creature animal cat dog fox wolf bear bird fish horse rabbit dragon mouse owl lion tiger deer
snake frog insect butterfly robot monster red orange yellow green blue purple pink white black gray grey brown gold
silver teal cyan magenta violet dark light pale bright colorful pastel warm cold hair eyes eye face head ears ear nose
mouth lips teeth tongue hand hands finger arm arms leg legs feet foot tail wings wing horns horn fur feathers scales
skin body chest neck shoulders back beard bangs ponytail braid twintails bun freckles scar long short medium straight
curly wavy messy big small large tiny tall thin wide round square triangle oval circle star heart smile smiling open
closed looking viewer away standing sitting lying walking running jumping flying sleeping holding reading eating
drinking dancing fighting laughing crying angry happy sad surprised blush wink serious dress shirt skirt pants shorts
jacket coat hoodie sweater uniform suit armor robe cape cloak hat cap crown helmet hood scarf tie ribbon bow gloves
socks shoes boots belt glasses mask earrings necklace bracelet ring bag backpack sword shield staff book flower
flowers umbrella ball cup lamp candle lantern background simple scene sky cloud clouds sun moon stars night day sunset
sunrise morning evening rain snow wind storm fog sea ocean beach river lake water island mountain mountains hill
forest tree trees grass field garden leaf leaves desert cave city street house building room kitchen bedroom window
door table chair bed castle tower bridge road spring summer autumn winter fire flame ember smoke spark ice stone metal
wood glass paper gem crystal stripes striped dots dotted checkered zigzag spiral pattern plain gradient shadow glow
shiny style art drawing painting sketch watercolor ink oil pixel flat vector photo photograph realistic cartoon anime
comic chibi poster logo icon line lines lineart shading outline monochrome greyscale detailed abstract minimal vintage
retro portrait closeup full upper lower half side front view above below shot best quality masterpiece high low one
two three four five left right top bottom middle signature text watermark border sit stand lie walk run jump fly sleep
read eat drink dance fight laugh cry sing sleepy blueprint hatching wave waves sand rock rocks steam snowflake rainbow
wheel boat ship sail train rail car cart bicycle basket windmill lighthouse teapot lid rug bench balloon kite apple
pear cherry bread cake fence gate roof wall stairs clock bell drum key
"""


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges in order of rank), laid out as CLIP's: bytes, bytes at a word's end, merges, start, end.

    "!" is id 0, with which SDXL's second tokenizer pads. END has the highest id, so that whoever finds the pooled token
    by the largest id finds it too.
    """
    merges = _learn_merges(sorted(set(WORDS.split())))
    return {token: id for id, token in enumerate(laid_out(merges))}, merges


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merge the commonest pair of neighbours until each word is one token (Sennrich et al. 2016, every word once).

    Learnt until nothing is left to merge, the merges in this order lead back to whole words.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out
