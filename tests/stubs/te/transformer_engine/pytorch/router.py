"""transformer_engine/pytorch/router.py: of mixtures of experts, imported and never called."""

fused_compute_score_for_moe_aux_loss = fused_moe_aux_loss = fused_topk_with_score_function = None
