"""What `check` can find, by code: titles, levels and explanations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["off", "warn", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Code:
    """A kind of finding. `level` holds unless a manifest says otherwise; `text` says why it matters, and what helps."""

    title: str
    level: Level
    text: str


# The tens group them: TOML files, project, base, images, their sizes, captions, batches, recipe, prompts, outputs.
CODES: dict[str, Code] = {
    "LB001": Code(
        "a TOML file is wrong",
        "error",
        "A manifest, a recipe or lorabuild.toml is not TOML, has an unknown key, or a value that does not fit. Nothing can be built of it, "
        "so that its level cannot be changed; other projects are checked all the same. The exit code is 3.",
    ),
    "LB002": Code(
        "a setting has no effect",
        "warn",
        "The manifest says something that nothing reads: [recipe] of a project that starts from a LoRA file, say. Remove it.",
    ),
    "LB010": Code(
        "the project's kind is not said",
        "warn",
        '[project] kind is "character", "style" or "concept". It goes into the file\'s metadata, where UIs and people look for it.',
    ),
    "LB011": Code(
        "the project has no trigger",
        "warn",
        "[project] trigger is the word in a prompt that calls the LoRA. It goes into the file's metadata, and captions are checked for it. "
        "A style that needs no word may turn this off.",
    ),
    "LB020": Code(
        "the base is not there",
        "error",
        "The file or folder of [bases.<name>] is looked for in the repository and in [models] dirs of lorabuild.local.toml.",
    ),
    "LB021": Code(
        "the base is not whole",
        "error",
        "A part that is read (U-Net, VAE, text encoders, tokenizers) is missing, truncated or of another kind. Only headers are read here, not weights.",
    ),
    "LB022": Code(
        "the base has no tokenizers to count with",
        "warn",
        "Tokens of captions and prompts are counted by the base's own two tokenizers. A diffusers folder has them (tokenizer/ and tokenizer_2/, "
        "each with vocab.json and merges.txt). A single file holds none: its own are looked for beside it, CLIP's in Hugging Face's cache and other "
        "places (docs/tokenizers.md), and `lorabuild doctor --fetch-tokenizer` fetches CLIP's once. Without them no length is checked, and nothing is trained.",
    ),
    "LB023": Code(
        "the LoRA to start from is not usable",
        "error",
        "[project] source names a file that is not there, is no .safetensors file, lies in build/, or is no LoRA for SDXL.",
    ),
    "LB024": Code(
        "the base says that it predicts something else",
        "warn",
        "Checkpoints that predict v hold an empty tensor v_pred or say so in their metadata, folders in scheduler_config.json. What counts is "
        "prediction_type of [bases.<name>]: trained as the wrong one, a LoRA comes out grey or noisy.",
    ),
    "LB025": Code(
        "the base is not the one that is pinned",
        "error",
        "The file's sha256 does not begin with digest of [bases.<name>]: it is another file, or another version of it. Nothing is built on it. "
        "It is read whole for that once, by check or by a build, and again only if the file changes.",
    ),
    "LB030": Code(
        "an image folder is missing or empty",
        "error",
        "image_dir of a [[dataset.subset]] is seen from the manifest's folder. Folders inside it are not searched.",
    ),
    "LB031": Code(
        "an image cannot be read",
        "error",
        "The file is truncated, damaged, empty, of another format, too large, a broken link, or may not be read. Every image is decoded whole here, "
        "so that no build stops for it after hours. Save it anew, or take it away.",
    ),
    "LB032": Code(
        "an image fits no bucket",
        "error",
        "It is so long, or with bucket_no_upscale so small, that nothing would be left of it, or that resizing it would exhaust memory.",
    ),
    "LB033": Code(
        "a bucket cuts much of an image off",
        "warn",
        "More than 15 % of the resized image lie outside its bucket: its shape is beyond what min_bucket_reso and max_bucket_reso allow, or "
        "bucket_reso_steps are coarse, or enable_bucket is off. Crop it by hand, to what should be learnt.",
    ),
    "LB034": Code(
        "an image is much enlarged",
        "warn",
        "It is scaled up by more than 1.5: the LoRA learns its blur. A larger original helps, or bucket_no_upscale, or a smaller resolution.",
    ),
    "LB035": Code(
        "an image is there twice",
        "warn",
        "Two files hold the same pixels, so that the picture counts twice. If that is meant, num_repeats of a subset says it plainly.",
    ),
    "LB036": Code(
        "two images are nearly the same",
        "warn",
        "Their difference hashes (dHash: which of two neighbouring cells of a 9 x 8 grid is darker) differ in 4 of 64 bits or fewer: one may be a "
        "smaller or recompressed copy of the other. Variants of one picture may be meant.",
    ),
    "LB037": Code(
        "an image's name says another format",
        "warn",
        "The file is decoded by its content and trains well, but other programs go by the ending. Rename it.",
    ),
    "LB038": Code(
        "only the first frame of an animation is seen",
        "warn",
        "An animated PNG or WebP trains as its first frame. Save the frame that is meant as a file of its own.",
    ),
    "LB039": Code(
        "the colours of an image are converted",
        "warn",
        "CMYK is converted to RGB without a colour profile, and 16-bit grey is cut to 8 bits: look whether the result is what is meant.",
    ),
    "LB040": Code(
        "a picture's format is not read",
        "warn",
        "The file's ending is that of a picture, but not of one that is read here, so that it is no part of the data set: convert it. "
        "Or it is a folder with a picture's name, or its name ends in a dot or a space: rename it.",
    ),
    "LB041": Code(
        "an image's checksum is wrong",
        "warn",
        "A part of the PNG is not what was written: the file was damaged on its way. It is decoded all the same, maybe with wrong pixels. "
        "Take it from where it came from again.",
    ),
    "LB042": Code(
        "an image shows nothing",
        "warn",
        "All its pixels have one colour. A picture that is wholly transparent is white: transparent pixels are seen on white.",
    ),
    "LB050": Code(
        "a caption cannot be read",
        "error",
        "A caption is UTF-8 text. The message has the offset of the first byte that is not.",
    ),
    "LB051": Code(
        "an image has no caption",
        "warn",
        "A caption has its image's name with caption_extension. Without one the image trains with an empty text.",
    ),
    "LB052": Code(
        "a caption is empty",
        "warn",
        "The image trains with an empty text. If that is meant, remove the file and turn LB051 off.",
    ),
    "LB053": Code(
        "a tag stands twice",
        "warn",
        "The same tag, without regard to case, stands twice between caption_separator: it takes tokens and weighs double.",
    ),
    "LB054": Code(
        "a caption lacks the trigger",
        "warn",
        "[project] trigger does not stand in it as a word of its own, so that this image does not teach it.",
    ),
    "LB055": Code(
        "a caption is too long",
        "warn",
        "By one of the two CLIP tokenizers it has more tokens than max_token_length (start and end are not counted): what comes last is cut "
        "off. With shuffle_caption that is other tags each time.",
    ),
    "LB056": Code(
        "a caption has no image",
        "warn",
        "A file with caption_extension has no image of its name beside it: it may have been renamed.",
    ),
    "LB057": Code(
        "only the first line of a caption counts",
        "warn",
        "What stands on further lines is not read, as in sd-scripts. Put all tags on one line.",
    ),
    "LB058": Code(
        "two images have one caption",
        "warn",
        "Their names differ in the ending alone, so that one caption file is for both: ember.png and ember.jpg have ember.txt. Rename one.",
    ),
    "LB060": Code(
        "buckets do not fill a batch",
        "warn",
        "A batch is of one bucket. A bucket with fewer images (with repeats) than train_batch_size gives short batches only: its images train "
        "in small company, and an update takes more batches. Fewer buckets (larger bucket_reso_steps) or cropping help.",
    ),
    "LB061": Code(
        "an update sees the whole data set",
        "warn",
        "train_batch_size x gradient_accumulation_steps is at least as many images as an epoch has: one update takes all of them, some twice.",
    ),
    "LB062": Code(
        "the processes have unequal shares",
        "warn",
        "An update's gradient_accumulation_steps micro-batches are dealt to the processes; where they do not come out even, some wait for the "
        "others at each update. The weights are the same; a multiple of processes takes no longer.",
    ),
    "LB070": Code(
        "the adapter cannot be made",
        "error",
        "The adapter was built on the base's architecture, without weights, and failed or found other layers than its preset has.",
    ),
    "LB071": Code(
        "the optimizer cannot be made",
        "error",
        "optimizer_type or optimizer_args are not accepted by the optimizer's own code, or its package is not installed.",
    ),
    "LB072": Code(
        "the schedule cannot be made",
        "error",
        "lr_scheduler, its arguments or its warm-up do not give a learning rate for every update.",
    ),
    "LB073": Code(
        "the LoRA to continue from is not usable",
        "error",
        "[recipe] init or network_weights names a file that is not there, is no .safetensors file, lies in build/, or is no LoRA for SDXL. "
        "A project that is not there is a wrong manifest (LB001).",
    ),
    "LB074": Code(
        "this machine cannot train at this precision",
        "warn",
        'mixed_precision = "fp16" needs a GPU, and there is none here: the training would end at its start. "bf16" and "no" work on a CPU.',
    ),
    "LB075": Code(
        "the snapshots do not fit on the disk",
        "warn",
        "The files that this training saves, in the store and in build/, are larger than the space that is free. Save fewer, or smaller ones.",
    ),
    "LB076": Code(
        "the rates are unusual",
        "warn",
        "The recipe works, but seldom says what is meant: an optimizer that finds the learning rate itself multiplies it by unet_lr and text_encoder_lr, and a warm-up as long as the training leaves the schedule nothing.",
    ),
    "LB077": Code(
        "the training may not fit on the card",
        "warn",
        "What the training needs of the device's memory, by an estimate (docs/memory.md), is more than the card has. The message names the keys that cost least of those that would make it fit.",
    ),
    "LB080": Code(
        "the prompt file is wrong",
        "error",
        "The file of [samples] prompts is missing, or a line of it has an option that does not exist or a value that does not fit.",
    ),
    "LB081": Code(
        "a prompt is not taken as it stands",
        "warn",
        "Something in the line means nothing here, or is rounded. The picture is drawn all the same.",
    ),
    "LB082": Code(
        "a prompt is too long",
        "warn",
        "By one of the two CLIP tokenizers it has more than 75 tokens: it is drawn in chunks of 75, each encoded by itself. Programs that know no chunks cut it.",
    ),
    "LB083": Code(
        "processes wait while prompts are drawn",
        "warn",
        "With several processes the first one draws all prompts on the way of a training, and the others wait. Any number of prompts is right, "
        "a multiple of processes or not; fewer of them, or a larger sample_every_n_steps, take less time.",
    ),
    "LB090": Code(
        "the output cannot be written",
        "error",
        "build/ and .lorabuild/ take what is built; here one of them, or a folder above, may not be written to or is no folder.",
    ),
}
FIXED = ("LB001",)  # codes whose level no manifest can change: it could not be read
