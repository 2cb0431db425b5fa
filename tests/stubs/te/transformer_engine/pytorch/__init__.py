from . import distributed, fp8, ops, optimizers, router, tensor  # noqa: F401
from .attention.dot_product_attention import DotProductAttention  # noqa: F401
from .module.grouped_linear import GroupedLinear  # noqa: F401
from .module.layernorm import LayerNorm  # noqa: F401
from .module.layernorm_linear import LayerNormLinear  # noqa: F401
from .module.linear import Linear  # noqa: F401
from .module.rmsnorm import RMSNorm  # noqa: F401
