"""Every key of a Long-VITA config file, with its type, unit and default.

Sections are strict and immutable: an unknown key, a wrong type or a value outside its range is an error.
`longvita.config.loader` reads files into these classes and adds file and line to the errors.
"""

from __future__ import annotations

import math
import os.path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

PROMPT = "Describe what you see."
"""Default of data.dataset.NAME.prompt."""
TILE_MARKERS = 2
"""Marker tokens around the tokens of a tile: <img> </img>, <patch> </patch> or <vid> </vid>."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path on this machine or an address; ~ at its start is expanded to the home folder."""


MIN_TEMPERATURE = 1e-4
"""Logits divided by less may be infinite in fp32."""


def _temperature(value: float) -> float:
    if value != 0 and not MIN_TEMPERATURE <= value < math.inf:
        raise PydanticCustomError("temperature", f"Input should be 0 (greedy) or at least {MIN_TEMPERATURE}")
    return value


def _as_list(value: Any) -> Any:
    """Turn a single name into a list."""
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]
"""One name or a list of them."""


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, immutable; the string below a field is its description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class VisionConfig(Section):
    """InternViT vision encoder (arXiv 2312.14238). The defaults are InternViT-300M-448px."""

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
    """Initial value of the layer scales ls1 and ls2 when the vision encoder is trained from scratch."""

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def sequence_length(self) -> int:
        """Positions of one tile in the vision encoder: the patches and the class token."""
        return self.patches_per_side**2 + 1


class ProjectorConfig(Section):
    """Pixel shuffle and two-layer MLP between the vision encoder and the language model."""

    downsample: int = Field(2, ge=1)
    """Pixel shuffle factor per side: downsample x downsample patches become one token."""
    hidden_size: int = Field(1024, ge=1)
    """Width of the MLP's middle layer."""
    layernorm_epsilon: float = Field(1e-5, gt=0)
    """Epsilon of the layer norm before the MLP."""


class LanguageConfig(Section):
    """Qwen2.5 decoder. The defaults are Qwen2.5-14B with the position limit of Long-VITA."""

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
    """Whether the output layer uses the weight of the embedding."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Total width of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one transformer layer: attention and the gated MLP."""
        key_value = 2 * self.num_query_groups * self.head_dim
        return self.hidden_size * (2 * self.query_width + key_value + 3 * self.ffn_hidden_size)


class ModelConfig(Section):
    """A Long-VITA model: vision encoder, projector, language model."""

    name: str = "long_vita"
    """Name shown in logs and written to exported model cards."""
    vision: VisionConfig = VisionConfig()
    """Vision encoder."""
    projector: ProjectorConfig = ProjectorConfig()
    """Projector."""
    language: LanguageConfig = LanguageConfig()
    """Language model."""
    init_method_std: float = Field(0.01, gt=0)
    """Standard deviation of newly initialised weights; residual outputs are scaled down by depth."""
    embedding_init_method_std: float | None = Field(None, gt=0)
    """Standard deviation of newly initialised word embeddings; init_method_std when absent."""

    @property
    def tokens_per_tile(self) -> int:
        """Tokens of one tile or frame in the language model (256 in the published models)."""
        return (self.vision.patches_per_side // self.projector.downsample) ** 2


DataFormat = Literal["jsonl", "json", "parquet", "webdataset", "captions"]
"""Formats of data files (longvita/data/formats)."""
Column = Literal["messages", "question", "answer", "caption", "system", "images", "videos"]
"""Purposes of the values of a record (longvita/data/formats/record.py)."""
ChatRole = Literal["system", "user", "assistant"]
"""Roles of turns."""


class DatasetConfig(Section):
    """One data source of a mix."""

    ratio: float = Field(1.0, ge=0)
    """Fraction of the samples of each file to use; above 1 repeats samples, 0 leaves the source out."""
    num: int = Field(999999999, ge=1)
    """Largest number of samples to use from each file."""
    data_paths: list[PathText] = Field(min_length=1)
    """Data files of the source, relative to data.data_root: paths, folders, patterns with * ? [ ], and ranges such as
    shard-{000..127}.tar."""
    format: DataFormat | None = None
    """Format of the files; chosen by file name extension when absent, captions for a folder."""
    columns: dict[Column, str] = {}
    """Names of the columns or JSON keys that hold the messages, or a question and its answer, or a caption, the system
    message, and the images and videos; a dot leads into a struct or a list. The usual names are found without being
    given."""
    roles: dict[str, ChatRole] = {}
    """Role words of the files in addition to the known ones (human, gpt, bot, tool ...), and their roles."""
    prompt: str = Field(PROMPT, min_length=1)
    """Question that a caption answers."""
    found_at: Names = []
    """Where the source is published: data sets of the Hugging Face Hub (OWNER/NAME), or web pages (https://...) for
    other places. `longvita data fetch` leaves out a source without any."""
    files_at: str | None = None
    """Where data_paths lie on the Hub: OWNER/NAME or OWNER/NAME/FOLDER, the prefix of each path; data.files_at when
    absent. Empty if each path starts with the OWNER/NAME of its own data set."""
    licence: str = ""
    """Licence of the source, as its data set card states it."""
    folder_fps: float | None = Field(None, gt=0)
    """Frames per second of the videos of the source that are folders of frames; when absent 2 for paths that contain
    ShareGPTVideo and 1 for others, as published."""
    media_root: PathText | None = None
    """Folder or address that picture and video paths of the source are relative to; data.media_root when absent."""
    max_quarantined: float | None = Field(None, ge=0, le=1)
    """Largest share of quarantined samples of the source; data.max_quarantined when absent."""


class DataConfig(Section):
    """Data sources, tiling, frame sampling, tokenization and packing."""

    tokenizer: PathText = ""
    """Folder of the tokenizer in the format of Hugging Face, with or without the 17 added tokens."""
    dataset: dict[str, DatasetConfig] = {}
    """Training mix: source name to its files, ratio and limit."""
    validation: dict[str, DatasetConfig] = {}
    """Held-out sources; the validation loss of each is logged separately."""
    data_root: PathText = "."
    """Folder, or address such as s3://BUCKET/FOLDER, that data_paths are relative to."""
    files_at: str = ""
    """Where the data_paths of all sources lie on the Hugging Face Hub: OWNER/NAME/FOLDER, the prefix of each path."""
    allow_missing: bool = False
    """Whether missing data files are left out and counted; otherwise a missing file is an error."""
    max_quarantined: float = Field(0.05, ge=0, le=1)
    """Largest share of a source's samples that its index may quarantine (broken ones, and those longer than a sequence)
    when a run starts; a source with more stops it. For sources of 100 samples or more, and for the share of files that
    are not of their format at any number; 1 allows any share. Samples that fail later, when they are decoded, do not
    stop a run: beyond this share each checkpoint prints a warning."""
    media_root: PathText = "."
    """Folder or address that picture and video paths are relative to; they must stay inside it; / allows any path."""
    sequence_length: int = Field(16384, ge=2)
    """Length of a packed sequence, tokens."""
    isolate_documents: bool = True
    """Whether each sample of a packed sequence attends to itself alone, with positions from 0."""
    max_num_tiles: int = Field(12, ge=1)
    """Largest number of tiles of a picture, its thumbnail not counted."""
    max_num_frames: int = Field(63, ge=1)
    """Largest number of frames sampled from one video."""
    max_fps: float = Field(1.0, gt=0)
    """Highest rate at which frames are sampled from a video, frames per second."""
    frame_sampling: Literal["published", "even", "time"] = "published"
    """Which frames of a video are sampled; their number is the same. published: every n-th frame at the mean rate, and
    of a folder with more frames than the limit the published rule, which leaves out its last frames; even: evenly from
    the first frame to the last; time: the frames on screen at evenly spaced times, for videos of uneven rate."""
    max_damaged_share: float = Field(0.05, ge=0, le=1)
    """A frame that cannot be decoded is replaced by the nearest one that can, if that is at most this share of the
    video's frames away; otherwise the sample is quarantined. 0 replaces none."""
    num_workers: int = Field(2, ge=0)
    """Worker processes per training process that decode and tokenize ahead; 0 does it in the training process."""
    decode_timeout_seconds: float = Field(120.0, gt=0)
    """Longest time to decode one frame or one picture, seconds; a sample that takes longer is quarantined."""
    sample_timeout_seconds: float = Field(600.0, gt=0)
    """Longest time to decode the tiles of one sample, seconds; a sample that takes longer is quarantined."""
    decode_memory_bytes: int = Field(4 * 1024**3, ge=256 * 1024**2)
    """Most memory that a worker may use for decoding, in addition to the tiles themselves, bytes; a sample that needs
    more is quarantined."""
    decode_threads: int = Field(1, ge=1)
    """Threads per video decoder; more than 1 helps if there are more cores than workers."""
    reduced_jpeg: bool = False
    """Whether a JPEG picture is decoded at 1/2, 1/4 or 1/8 of its size if that still has as many pixels in each
    direction as its grid of tiles. Faster for large photographs; the tiles differ slightly from the published ones."""
    frame_cache: PathText | None = None
    """Folder of a cache of decoded frames, shared by processes, epochs and runs; no cache when absent."""
    frame_cache_bytes: int = Field(100 * 1024**3, ge=1)
    """Size limit of frame_cache, bytes; the least recently used frames are removed first."""
    index_processes: int | None = Field(None, ge=0)
    """Worker processes that index data files; all available cores when absent. 0 indexes in the main process, which a
    broken header can crash."""
    index_cache: PathText | None = None
    """Folder of the indexes of the data files, and of what is known of media files; when absent the folder "index" next
    to output, which the runs with neighbouring output folders share."""


class LayoutConfig(Section):
    """Parallel sizes, in Megatron's terms."""

    tensor_parallel: int = Field(1, ge=1)
    """TP: processes that each layer's weights are split over."""
    pipeline_parallel: int = Field(1, ge=1)
    """PP: pipeline stages that the layers are split into."""
    virtual_pipeline: int = Field(1, ge=1)
    """Model chunks per stage; above 1 uses the interleaved 1F1B schedule."""
    context_parallel: int = Field(1, ge=1)
    """CP: processes that each sequence is split over."""
    ulysses: int | None = Field(None, ge=1)
    """Size of the Ulysses groups inside CP, which exchange tokens for heads in attention; keys and values are sent
    around a ring of CP / ulysses such groups. 1 uses the ring alone, CP uses Ulysses alone; when absent, the largest
    size that divides both CP and the query groups of a TP rank."""
    sequence_parallel: bool = False
    """SP: splits norms and residuals along the sequence over the TP group; requires tensor_parallel above 1."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, ge=1)
    """Language layers of the first stage, which also holds the vision encoder; even split when absent."""
    num_layers_in_last_pipeline_stage: int | None = Field(None, ge=1)
    """Language layers of the last stage, which also holds the output layer; even split when absent."""
    processes: int | None = Field(None, ge=1)
    """Processes to start on this machine; one model replica (TP x PP x CP) when absent. A launcher (torchrun, Slurm)
    overrides it."""


class RecomputeConfig(Section):
    """Activation recomputation (activation checkpointing)."""

    granularity: Literal["none", "selective", "full"] = "none"
    """none keeps all activations; selective recomputes core attention; full recomputes entire layers."""
    method: Literal["uniform", "block"] = "block"
    """For full: uniform recomputes groups of num_layers layers, block the first num_layers of a stage's model chunk."""
    num_layers: int = Field(1, ge=1)
    """For full: number of layers that method refers to."""
    vision: bool = False
    """Whether the layers of the vision encoder are recomputed too."""
    offload: bool = False
    """Whether layer inputs, all that full recomputation keeps, are offloaded until the backward pass: to host memory,
    or, on the CPU platform, to a file in TMPDIR (no gain if TMPDIR is in memory). Requires that every layer is
    recomputed."""


class BadStepsConfig(Section):
    """What to do about a step whose loss or gradient norm is not finite, or whose gradient norm is a spike."""

    policy: Literal["skip", "roll_back", "stop"] = "skip"
    """skip leaves the weights as they are and continues with the next batch; roll_back loads the newest checkpoint,
    trains the steps after it again and passes over the batch of the bad one; stop saves the
    state and ends the run."""
    max_in_row: int = Field(3, ge=0)
    """Most bad steps in a row; one more ends the run, as policy stop does."""
    max_total: int = Field(50, ge=0)
    """Most bad steps of the stage; one more ends the run, as policy stop does."""
    spike_factor: float | None = Field(None, gt=1)
    """A gradient norm above this multiple of the running median is a spike; no step is one when absent."""
    spike_window: int = Field(128, ge=8)
    """Newest steps that the running median is taken over. There is no median before an eighth of them."""


class WatchConfig(Section):
    """When a rank that stands still ends the run, with the stacks of all ranks in the run folder."""

    factor: float | None = Field(10.0, ge=4)
    """A phase (waiting for data, computing, agreeing) that takes more than this multiple of the median step, or a save
    or validation of the longest so far; never when absent."""
    min_seconds: float = Field(300.0, gt=0)
    """Shortest time that counts as standing still, seconds."""
    first_minutes: float = Field(60.0, gt=0)
    """The same for a first step, save or validation, of which no time is known, for opening the data and for a roll
    back, minutes."""


class TrainingConfig(Section):
    """One training stage."""

    global_batch_size: int = Field(512, ge=1)
    """Packed sequences per optimizer step, over all processes."""
    micro_batch_size: int = Field(1, ge=1)
    """Packed sequences per micro batch (one forward pass of one model replica)."""
    train_iterations: int = Field(1000, ge=0)
    """Optimizer steps of the stage."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of the computation; with bf16, main parameters and gradients stay in fp32."""
    fp8: Literal["tensorwise", "blockwise", "mxfp8"] | None = None
    """FP8 recipe for the matrix products of the language model: one scale per tensor, per block or per 32 numbers.
    Requires precision bf16 and a platform with FP8. Delayed scaling is not offered, because a checkpoint would have to
    hold its history."""
    trainable: list[Literal["vision", "projector", "language"]] = Field(
        ["vision", "projector", "language"], min_length=1
    )
    """Parts of the model that are trained; the others are frozen."""
    recompute: RecomputeConfig = RecomputeConfig()
    """Activation recomputation."""
    loss_chunk_size: int = Field(1024, ge=1)
    """Loss positions whose logits are in memory at once."""
    mlp_chunk_size: int | None = Field(None, ge=1)
    """Tokens of a process that an MLP of the language model computes at once; all when absent. Chunks keep only their
    input and are recomputed in the backward pass."""
    vision_chunk_size: int = Field(64, ge=1)
    """Tiles of a process that are encoded at once, and whose features are exchanged at once."""
    megatron: dict[str, bool | int | float | str | list[str] | None] = {}
    """Further fields of megatron-core's TransformerConfig for the language model, by their names there: captured
    graphs, fused kernels, overlap. Fields that this config sets itself are refused."""
    overlap_grad_reduce: bool = True
    """Whether the gradient reduction over DP overlaps with the backward pass."""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """Steps whose gradients are not applied."""
    watch: WatchConfig = WatchConfig()
    """Ranks that stand still."""
    validation_interval: int = Field(0, ge=0)
    """Steps between evaluations on data.validation; 0 evaluates after the last step only."""
    validation_sequences: int = Field(64, ge=1)
    """Packed sequences per held-out source in each evaluation."""
    time_limit_minutes: float | None = Field(None, gt=0)
    """Wall time within which the run saves and stops, minutes: it starts no step that would not end in time by its
    measured steps and saves. Under Slurm the end of the job is such a limit too."""


class OptimizerConfig(Section):
    """AdamW with learning rate warm-up and decay."""

    lr: float = Field(1e-5, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the decay."""
    decay_style: Literal["cosine", "linear", "constant", "WSD"] = "cosine"
    """Shape of the decay, by Megatron's names; WSD keeps the rate constant, then decays it over decay_fraction."""
    warmup_fraction: float = Field(0.03, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    decay_fraction: float = Field(0.333, gt=0, le=1)
    """For WSD: fraction of the steps, at the end, in which the learning rate falls."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW beta 2."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay; not applied to biases and norms."""
    clip_grad: float = Field(1.0, ge=0)
    """Global gradient norm above which gradients are clipped; 0 for no clipping."""
    vision_lr_mult: float = Field(1.0, gt=0)
    """Factor on lr for the vision encoder."""
    projector_lr_mult: float = Field(1.0, gt=0)
    """Factor on lr for the projector."""
    vision_layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise decay: ratio of the learning rate of a vision layer to that of the layer above it."""


class CheckpointConfig(Section):
    """Starting weights and checkpoints."""

    initial: PathText | None = None
    """Starting weights: a checkpoint folder of this project, a published Long-VITA folder or Hub id; random when
    absent."""
    initial_language: PathText | None = None
    """Starting weights of the language model alone: a Qwen2.5 folder or Hub id."""
    initial_vision: PathText | None = None
    """Starting weights of the vision encoder alone: an InternViT folder or Hub id."""
    save_interval: int = Field(0, ge=0)
    """Steps between checkpoints; 0 for none by steps."""
    save_minutes: float = Field(30.0, ge=0)
    """Wall time after which a checkpoint is saved, counted from the newest one, minutes; 0 for none by time."""
    max_minutes_unsaved: float = Field(180.0, gt=0)
    """Wall time from a first failed or late save after which another one ends the run, minutes, unless one was good in
    between. Until then saves are tried again while training continues."""
    keep: int = Field(2, ge=1)
    """Number of newest checkpoints to keep."""
    asynchronous: bool = True
    """Whether training continues while a checkpoint is written."""


class LoggingConfig(Section):
    """Logs of a run."""

    interval: int = Field(1, ge=1)
    """Steps between log lines."""
    tensorboard: bool = True
    """Whether TensorBoard files are written in addition to metrics.jsonl."""


class InferenceConfig(Section):
    """Generation."""

    max_seq_len: int = Field(16384, ge=1)
    """Longest prompt plus answer, tokens."""
    max_num_frames: int = Field(63, ge=1)
    """Largest number of frames sampled from one video."""
    prefill_chunk_size: int = Field(8192, ge=1)
    """Prompt tokens per forward pass during prefill."""
    cached_prompts: int = Field(4, ge=1)
    """Prompts with their answers, the current one included, whose keys and values stay cached for later prompts with a
    common prefix, as far as memory allows."""
    max_new_tokens: int = Field(1024, ge=1)
    """Longest answer, tokens."""
    temperature: Annotated[float, AfterValidator(_temperature)] = 0.0
    """Sampling temperature; 0 is greedy. The smallest other one is 0.0001, at which sampling is greedy in effect."""
    top_k: int = Field(0, ge=0)
    """Sample among this number of most probable tokens; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most probable tokens whose probabilities add up to this."""


class Config(Section):
    """A complete run."""

    name: str = "run"
    """Name of the run."""
    output: PathText = "runs/default"
    """Folder for checkpoints, metrics, the quarantine file and plots."""
    platform: str = "auto"
    """Device platform, a name of longvita.platforms; auto selects the first one that is available."""
    seed: int = Field(42, ge=0, lt=2**64)
    """Seed of the initialisation and of the data order."""
    model: ModelConfig = ModelConfig()
    """The model."""
    data: DataConfig = DataConfig()
    """The data."""
    layout: LayoutConfig = LayoutConfig()
    """The parallel sizes."""
    training: TrainingConfig = TrainingConfig()
    """The training stage."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""
    inference: InferenceConfig = InferenceConfig()
    """Generation."""
