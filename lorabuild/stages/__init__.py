"""The stages of a build, one file each; STAGES lists them in order."""

from lorabuild.stages import base, chop, dataset, latents, norms, resize, samples, spectrum, train

STAGES = {
    module.STAGE.name: module.STAGE
    for module in (base, norms, dataset, latents, train, spectrum, resize, chop, samples)
}
