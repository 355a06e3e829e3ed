"""The network of the same kind at its default widths, to which ``lr_scale`` compares."""

from train.config import AirbenchConfig, ModelConfig, NetConfig, ResNetConfig


def base_model(config: ModelConfig) -> ModelConfig | None:
    """The same network with its default widths, or None if it has no widths to scale."""
    if isinstance(config, NetConfig):
        default = NetConfig()
        return config.model_copy(update={"channels": default.channels, "hidden": default.hidden})
    if isinstance(config, ResNetConfig):
        return config.model_copy(update={"width": ResNetConfig().width})
    if isinstance(config, AirbenchConfig):
        return config.model_copy(update={"widths": AirbenchConfig().widths})
    return None
