"""Models of several towers: which language model each holds."""

from __future__ import annotations

from frontends.families.scheme import Wrapper

ROWS = (
    Wrapper(("gemma3",), "gemma3_text", changes={"logit_cap": None}),
    Wrapper(("glm4v",), "glm4v_text"),
    Wrapper(("glm4v_moe",), "glm4v_moe_text"),
    Wrapper(("glmasr",), "llama"),
    Wrapper(("hunyuan_vl",), "hunyuan_vl_text"),
    Wrapper(("llava", "llava_next", "voxtral"), "llama"),
    Wrapper(("mistral3",), "mistral"),
    Wrapper(("internvl",), "qwen2"),
    Wrapper(("qwen2_vl",), "qwen2_vl_text"),
    Wrapper(("qwen2_5_vl",), "qwen2_5_vl_text"),
    Wrapper(("qwen3_vl",), "qwen3_vl_text"),
    Wrapper(("qwen3_5",), "qwen3_5_text"),
    Wrapper(("qwen3_5_moe",), "qwen3_5_moe_text"),
)
