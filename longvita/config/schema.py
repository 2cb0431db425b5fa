"""Every key that a Long-VITA YAML file may hold, with its type, unit and default.

Sections are strict and immutable: an unknown key, a wrong type or a value outside its range is an error.
`longvita.config.loader` reads files into these classes and adds file and line to the errors.
"""

from __future__ import annotations

import os.path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PROMPT = "Describe what you see."
"""Question of a caption, unless data.dataset.NAME.prompt asks another."""
TILE_MARKERS = 2
"""Tokens around a tile's own: <img> </img>, <patch> </patch> or <vid> </vid>."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path on this machine; a ~ at its start is the home folder."""


def _as_list(value: Any) -> Any:
    """A name that stands alone, as a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]
"""One name or a list of them."""


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, immutable, field docs from the strings below them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class VisionConfig(Section):
    """InternViT vision tower (arXiv 2312.14238). The defaults are InternViT-300M-448px."""

    num_layers: int = Field(24, ge=1)
    """Transformer layers."""
    hidden_size: int = Field(1024, ge=1)
    """Width of a patch's hidden state."""
    num_attention_heads: int = Field(16, ge=1)
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: int = Field(4096, ge=1)
    """Width of the MLP's middle layer."""
    patch_size: int = Field(14, ge=1)
    """Side of a square patch, pixels."""
    image_size: int = Field(448, ge=1)
    """Side of a square tile, pixels; a multiple of patch_size."""
    layernorm_epsilon: float = Field(1e-6, gt=0)
    """Epsilon of the layer norms."""
    layer_scale_init: float = 0.1
    """First value of the layer scales ls1 and ls2 when the tower is trained from scratch."""

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def sequence_length(self) -> int:
        """Positions of one tile in the tower: the patches and the class token."""
        return self.patches_per_side**2 + 1


class ProjectorConfig(Section):
    """Pixel shuffle and two-layer MLP between the vision tower and the language model."""

    downsample: int = Field(2, ge=1)
    """Pixel shuffle factor per side: this many squared patches become one token."""
    hidden_size: int = Field(1024, ge=1)
    """Width of the MLP's middle layer."""
    layernorm_epsilon: float = Field(1e-5, gt=0)
    """Epsilon of the layer norm before the MLP."""


class LanguageConfig(Section):
    """Qwen2.5 decoder. The defaults are Qwen2.5-14B with Long-VITA's position limit."""

    num_layers: int = Field(48, ge=1)
    """Transformer layers."""
    hidden_size: int = Field(5120, ge=1)
    """Width of a token's hidden state."""
    ffn_hidden_size: int = Field(13824, ge=1)
    """Width of the SwiGLU MLP's middle layer."""
    num_attention_heads: int = Field(40, ge=1)
    """Query heads; must divide hidden_size unless kv_channels is given."""
    num_query_groups: int = Field(8, ge=1)
    """Key and value heads (GQA groups); must divide num_attention_heads."""
    kv_channels: int | None = Field(None, ge=2)
    """Width of an attention head; hidden_size / num_attention_heads when absent."""
    vocab_size: int = Field(152064, ge=1)
    """Rows of the embedding and of the output layer, padding rows included."""
    max_position_embeddings: int = Field(1310720, ge=1)
    """Longest sequence that the model accepts, tokens."""
    rotary_base: int = Field(1000000, ge=1)
    """RoPE theta."""
    layernorm_epsilon: float = Field(1e-6, gt=0)
    """Epsilon of the RMS norms."""
    tie_word_embeddings: bool = False
    """Whether the output layer shares the embedding's weight."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linears: attention and the gated MLP."""
        key_value = 2 * self.num_query_groups * self.head_dim
        return self.hidden_size * (2 * self.query_width + key_value + 3 * self.ffn_hidden_size)


class ModelConfig(Section):
    """A Long-VITA model: vision tower, projector, language model."""

    name: str = "long_vita"
    """Name shown in logs and written to exported model cards."""
    vision: VisionConfig = VisionConfig()
    """Vision tower."""
    projector: ProjectorConfig = ProjectorConfig()
    """Projector."""
    language: LanguageConfig = LanguageConfig()
    """Language model."""
    init_method_std: float = Field(0.01, gt=0)
    """Standard deviation of freshly initialised weights; residual outputs are scaled down by depth."""
    embedding_init_method_std: float | None = Field(None, gt=0)
    """Standard deviation of freshly initialised word embeddings; init_method_std when absent."""

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that one tile or frame takes in the language model (256 in the published models)."""
        return (self.vision.patches_per_side // self.projector.downsample) ** 2


DataFormat = Literal["jsonl", "json", "parquet", "webdataset", "captions"]
"""Formats of data files, see longvita/data/formats."""
Column = Literal["messages", "question", "answer", "caption", "images", "videos"]
"""What a named value of a record is for, see longvita/data/formats/record.py."""


class DatasetConfig(Section):
    """One source of a mix."""

    ratio: float = Field(1.0, ge=0)
    """Share of each file's samples to take; above 1 repeats samples, 0 leaves the source out."""
    num: int = Field(999999999, ge=1)
    """Most samples to take from each file."""
    data_paths: list[PathText] = Field(min_length=1)
    """Data files of the source, relative to data.data_root: paths, folders, patterns with * ? [ ] and ranges such as
    shard-{000..127}.tar."""
    format: DataFormat | None = None
    """Format of the files; by the end of their names when absent, captions for a folder."""
    columns: dict[Column, str] = {}
    """For parquet, webdataset and captions: names of the columns or JSON keys that hold the messages, or a question and
    its answer, or a caption, and the images and videos. The usual names need not be given."""
    prompt: str = Field(PROMPT, min_length=1)
    """Question of a caption."""
    found_at: Names = []
    """Where the source is public: data sets of the Hugging Face Hub (OWNER/NAME), pages (https://...) for what is
    elsewhere. `longvita data fetch` leaves out a source without any."""
    files_at: str | None = None
    """Where data_paths lie on the Hub: OWNER/NAME or OWNER/NAME/FOLDER, put before each path; data.files_at when
    absent. Empty where each path starts with the OWNER/NAME of its own data set."""
    licence: str = ""
    """Licence of the source, as its own card states it."""
    media_root: PathText | None = None
    """Folder, or address, that the samples' picture and video paths are relative to; data.media_root when absent."""


class DataConfig(Section):
    """What is read, how it is cut into tiles, frames and tokens, and how samples are packed."""

    tokenizer: PathText = ""
    """Folder of the tokenizer (Hugging Face layout), with the 17 added tokens or without them."""
    dataset: dict[str, DatasetConfig] = {}
    """Training mix: source name to its files, ratio and cap."""
    validation: dict[str, DatasetConfig] = {}
    """Held-out sources, each with a loss of its own in the log."""
    data_root: PathText = "."
    """Folder that data_paths are relative to, or an address such as s3://BUCKET/FOLDER."""
    files_at: str = ""
    """Where the data_paths of all sources lie on the Hugging Face Hub: OWNER/NAME/FOLDER, put before each path."""
    allow_missing: bool = False
    """Whether a data file that is not there is left out and counted; otherwise it is an error."""
    media_root: PathText = "."
    """Folder, or address, that picture and video paths are relative to and may not lead out of; / allows any path."""
    sequence_length: int = Field(16384, ge=2)
    """Length of a packed sequence, tokens."""
    isolate_documents: bool = True
    """Whether samples packed in one sequence are apart (positions and attention start anew at each)."""
    max_num_tiles: int = Field(12, ge=1)
    """Most tiles a picture is cut into, its thumbnail not counted."""
    max_num_frames: int = Field(63, ge=1)
    """Most frames taken from one video."""
    max_fps: float = Field(1.0, gt=0)
    """Most frames taken from one second of video, 1/s."""
    num_workers: int = Field(2, ge=0)
    """Processes per training process that decode and tokenize ahead; 0 does it in the training process."""
    decode_timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait for one frame of a video or one picture, seconds; a sample that takes longer is set aside."""
    sample_timeout_seconds: float = Field(600.0, gt=0)
    """Longest time that the tiles of one sample may take a worker, seconds; a sample that takes longer is set aside."""
    decode_memory_bytes: int = Field(4 * 1024**3, ge=256 * 1024**2)
    """Most memory that a worker may take for decoding, beside the tiles themselves, bytes; a sample that needs more is
    set aside."""
    decode_threads: int = Field(1, ge=1)
    """Threads of the decoder of a video; above 1 is of use where there are more cores than workers."""
    reduced_jpeg: bool = False
    """Whether a JPEG picture is read at a half, a quarter or an eighth of its size where that still has as many pixels
    in each direction as its grid of tiles. Faster for large photographs; the tiles differ a little from the published
    ones."""
    frame_cache: PathText | None = None
    """Folder of a cache of decoded frames that processes, epochs and runs share; no cache when absent."""
    frame_cache_bytes: int = Field(100 * 1024**3, ge=1)
    """Most bytes of the files in frame_cache; the frames that were not used for longest go first."""
    index_processes: int = Field(2, ge=0)
    """Processes that index a data file together; 0 does it in the command's own, which a broken header may end."""
    index_cache: PathText | None = None
    """Folder for the indexes of the data files; "index" below output when absent."""


class LayoutConfig(Section):
    """How the model and the batch are split over processes (Megatron's terms)."""

    tensor_parallel: int = Field(1, ge=1)
    """TP: processes that share each layer's weights."""
    pipeline_parallel: int = Field(1, ge=1)
    """PP: stages that the layers are split into."""
    virtual_pipeline: int = Field(1, ge=1)
    """Model chunks per stage; above 1 uses the interleaved 1F1B schedule."""
    context_parallel: int = Field(1, ge=1)
    """CP: processes that share each sequence."""
    ulysses: int | None = Field(None, ge=1)
    """CP ranks that trade tokens for heads in attention (Ulysses); keys and values travel in a ring over CP / ulysses
    such groups. 1 is the ring alone, CP is Ulysses alone; when absent, as many as divide heads and groups.
    """
    sequence_parallel: bool = False
    """SP: norms and residuals of a sequence are split over the TP group; needs tensor_parallel above 1."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, ge=1)
    """Language layers of the first stage, which also holds the vision tower; even split when absent."""
    num_layers_in_last_pipeline_stage: int | None = Field(None, ge=1)
    """Language layers of the last stage, which also holds the output layer; even split when absent."""
    processes: int | None = Field(None, ge=1)
    """Processes started on one machine; one model replica (TP x PP x CP) when absent. Launchers override it."""


class RecomputeConfig(Section):
    """Activations recomputed in the backward pass instead of kept."""

    granularity: Literal["none", "selective", "full"] = "none"
    """none keeps all; selective recomputes core attention; full recomputes whole layers."""
    method: Literal["uniform", "block"] = "block"
    """For full: uniform recomputes groups of num_layers layers, block the first num_layers of a stage's model chunk."""
    num_layers: int = Field(1, ge=1)
    """For full: see method."""
    vision: bool = False
    """Whether the vision tower's layers are recomputed too."""
    offload: bool = False
    """Whether layer inputs, all that full recomputation keeps, wait for the backward pass outside the device's memory:
    in the host's, or for the CPU in a file below TMPDIR, which wins nothing where that lies in memory. Every layer
    must be recomputed."""


class TrainingConfig(Section):
    """One training stage."""

    global_batch_size: int = Field(512, ge=1)
    """Packed sequences per optimizer step over all processes."""
    micro_batch_size: int = Field(1, ge=1)
    """Packed sequences per forward pass of one model replica."""
    train_iterations: int = Field(1000, ge=0)
    """Optimizer steps of the stage."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Compute precision; bf16 keeps fp32 main parameters and gradients."""
    fp8: Literal["tensorwise", "blockwise", "mxfp8"] | None = None
    """Products of the language model's layers in FP8, by what one scale is for: a tensor, a block, or 32 numbers. For
    platforms that have it, over bf16; delayed scaling is left out, whose history a checkpoint would have to hold."""
    trainable: list[Literal["vision", "projector", "language"]] = Field(
        ["vision", "projector", "language"], min_length=1
    )
    """Parts that are trained; the others are frozen."""
    recompute: RecomputeConfig = RecomputeConfig()
    """Activation recomputation."""
    loss_chunk_size: int = Field(1024, ge=1)
    """Loss positions whose logits exist at once."""
    mlp_chunk_size: int | None = Field(None, ge=1)
    """Rows of a process that the language model's MLPs take at once, tokens; all when absent. Chunks are computed
    again in the backward pass and keep nothing but their input."""
    vision_chunk_size: int = Field(64, ge=1)
    """Tiles of a process that are encoded, and whose features travel, at once."""
    megatron: dict[str, bool | int | float | str | list[str] | None] = {}
    """Fields of megatron-core's TransformerConfig, by their names there, for the language model: captured
    graphs, fused kernels, overlap. What this config has fields for is refused."""
    overlap_grad_reduce: bool = True
    """Whether gradient reduction over DP overlaps with the backward pass."""
    validation_interval: int = Field(0, ge=0)
    """Steps between evaluations of data.validation; 0 for none but the last."""
    validation_sequences: int = Field(64, ge=1)
    """Packed sequences per held-out source and evaluation."""
    time_limit_minutes: float | None = Field(None, gt=0)
    """Save and stop when this much wall time has passed, minutes."""


class OptimizerConfig(Section):
    """AdamW with warm-up and decay."""

    lr: float = Field(1e-5, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end."""
    decay_style: Literal["cosine", "linear", "constant", "WSD"] = "cosine"
    """Shape of the decay (Megatron's names; WSD holds, then decays over decay_fraction)."""
    warmup_fraction: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly from 0."""
    decay_fraction: float = Field(0.333, gt=0, le=1)
    """For WSD: share of the steps at the end in which the rate falls."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW beta 2."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay; biases and norms have none."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 for no clipping."""
    vision_lr_mult: float = Field(1.0, gt=0)
    """Learning rate of the vision tower over lr."""
    projector_lr_mult: float = Field(1.0, gt=0)
    """Learning rate of the projector over lr."""
    vision_layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of a vision layer over that of the layer above it (layer-wise decay)."""


class CheckpointConfig(Section):
    """Where weights come from and where checkpoints go."""

    initial: PathText | None = None
    """Starting weights: a checkpoint folder of ours, a published Long-VITA folder or Hub id; fresh when absent."""
    initial_language: PathText | None = None
    """Starting weights of the language model alone: a Qwen2.5 folder or Hub id."""
    initial_vision: PathText | None = None
    """Starting weights of the vision tower alone: an InternViT folder or Hub id."""
    save_interval: int = Field(0, ge=0)
    """Steps between checkpoints; 0 saves at the end only."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    asynchronous: bool = True
    """Whether a checkpoint is written while training goes on."""


class LoggingConfig(Section):
    """What a run reports."""

    interval: int = Field(1, ge=1)
    """Steps between log lines."""
    tensorboard: bool = True
    """Whether TensorBoard files are written beside metrics.jsonl."""


class InferenceConfig(Section):
    """Generation."""

    max_seq_len: int = Field(16384, ge=1)
    """Longest prompt and answer together, tokens."""
    max_num_frames: int = Field(63, ge=1)
    """Most frames taken from one video."""
    prefill_chunk_size: int = Field(8192, ge=1)
    """Prompt tokens that go through the model at once."""
    kept_documents: int = Field(4, ge=1)
    """Prompts with their answers whose keys and values are kept for later prompts that begin alike, as far as memory
    lasts; the one being answered included."""
    max_new_tokens: int = Field(1024, ge=1)
    """Longest answer, tokens."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_k: int = Field(0, ge=0)
    """Sample among this many most probable tokens; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most probable tokens that hold this much probability."""


class Config(Section):
    """A whole run."""

    name: str = "run"
    """Name of the run."""
    output: PathText = "runs/default"
    """Folder for checkpoints, metrics, the quarantine file and pictures."""
    platform: str = "auto"
    """Device platform, a name of longvita.platforms; auto takes the first one present."""
    seed: int = Field(42, ge=0)
    """Seed of initialisation and of the data order."""
    model: ModelConfig = ModelConfig()
    """The model."""
    data: DataConfig = DataConfig()
    """The data."""
    layout: LayoutConfig = LayoutConfig()
    """The parallel layout."""
    training: TrainingConfig = TrainingConfig()
    """The training stage."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    logging: LoggingConfig = LoggingConfig()
    """Reports."""
    inference: InferenceConfig = InferenceConfig()
    """Generation."""
