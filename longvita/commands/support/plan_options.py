"""The options of `longvita plan`, and the hardware, world size and batch contents that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.config.sizes import processes_to_start
from longvita.planning.batch_contents import BatchContents, worst_contents
from longvita.planning.hardware import Hardware, PlanError, find_hardware, hardware_of


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan."""

    devices: int | None = None
    """Processes; those that `longvita train` would start when absent."""
    memory: str | None = None
    """Memory of a device, such as 96GiB; the hardware's own when absent."""
    host_memory: str | None = None
    """Memory of a node for offloaded tensors of its devices, such as 2TiB; the hardware's own when absent."""
    hardware: str | None = None
    """A name of longvita.planning.hardware."""
    tiles: int | None = None
    """Tiles and frames of one sequence; as many as fit when absent."""
    loss_tokens: int | None = None
    """Positions with loss of one sequence."""
    documents: int = 1
    """Documents of one sequence, of equal length."""

    def device(self, config: Config) -> Hardware:
        """Return the hardware. Raises PlanError for an unknown name or a size that cannot be read."""
        return find_hardware(self.hardware or hardware_of(config.platform).name, self.memory, self.host_memory)

    def world_size(self, config: Config) -> int:
        """Return the number of processes."""
        return self.devices or processes_to_start(config)

    def contents(self, config: Config) -> list[BatchContents]:
        """Return the contents of a micro batch by the options; the two worst without self."""
        if self.tiles is None and self.loss_tokens is None and self.documents == 1:
            return worst_contents(config)
        sequences, tokens = config.training.micro_batch_size, config.data.sequence_length
        video, text = worst_contents(config)
        tiles = video.tiles if self.tiles is None else sequences * self.tiles
        if tiles > video.tiles:
            raise PlanError(f"--tiles {self.tiles}: at most {video.tiles // sequences} fit {tokens} tokens")
        loss = sequences * (tokens if self.loss_tokens is None else self.loss_tokens)
        if loss > text.tokens:
            raise PlanError(f"--loss-tokens {self.loss_tokens}: a sequence has {tokens} tokens")
        if tokens % self.documents:
            raise PlanError(f"--documents {self.documents} does not divide the {tokens} tokens of a sequence")
        return [BatchContents(text.tokens, sequences * self.documents, tiles, loss, "as given")]
