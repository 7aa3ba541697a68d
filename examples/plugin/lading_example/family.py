"""A model family: what a decoder of ``model_type`` "example" is made of, and how its checkpoint names things."""

from frontends.families.scheme import Family

EXAMPLE = Family(
    ("example",),
    attn_in="pre_norm",
    mlp_in="post_norm",
    defaults={
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
)
