"""The tables of lora.toml and lorabuild.toml, one file each."""
