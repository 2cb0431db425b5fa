"""The hardware, world size and batch contents that follow from the options of `longvita plan`."""

from __future__ import annotations

from longvita.commands.support.options import PlanOptions
from longvita.config.schema import Config
from longvita.config.sizes import processes_to_start
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.planning.hardware import Hardware, PlanError, find_hardware, hardware_of


def device(options: PlanOptions, config: Config) -> Hardware:
    """Return the hardware. Raises PlanError for an unknown name or a size that cannot be read."""
    return find_hardware(options.hardware or hardware_of(config.platform).name, options.memory, options.host_memory)


def world_size(options: PlanOptions, config: Config) -> int:
    """Return the number of processes."""
    return options.devices or processes_to_start(config)


def contents(options: PlanOptions, config: Config) -> list[BatchContents]:
    """Return the contents of a micro batch by the options; the two worst without them."""
    video, text = worst_contents(config)
    if not options.names_contents:
        return [video, text]
    sequences, tokens = config.training.micro_batch_size, config.data.sequence_length
    tiles = video.tiles if options.tiles is None else sequences * options.tiles
    if tiles > video.tiles:
        raise PlanError(f"--tiles {options.tiles}: at most {video.tiles // sequences} fit {tokens} tokens")
    loss = sequences * (tokens if options.loss_tokens is None else options.loss_tokens)
    if loss > text.tokens:
        raise PlanError(f"--loss-tokens {options.loss_tokens}: a sequence has {tokens} tokens")
    if tokens % options.documents:
        raise PlanError(f"--documents {options.documents} does not divide the {tokens} tokens of a sequence")
    return [BatchContents(text.tokens, sequences * options.documents, tiles, loss, "as given")]
