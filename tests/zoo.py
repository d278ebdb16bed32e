"""Models of transformers of every kind of task, tiny and random: what they return is looked at, and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from zoo_models import (
    SEQ2SEQ,
    SERIES,
    TEXT,
    VISION,
    backbone,
    bert,
    conditional_detr,
    dac,
    decoded,
    deformable_detr,
    depth_anything,
    detr,
    detr_masks,
    dpt,
    encodec,
    glpn,
    grounding_dino,
    ids,
    llava,
    mask2former,
    maskformer,
    noise,
    padded,
    pair,
    patches,
    pixels,
    rt_detr,
    sam,
    series,
    sound,
    spans,
    speecht5,
    table,
    trajectory,
    two_towers,
    visual_features,
    vits,
    wav2vec2,
    zoedepth,
)


@dataclass(frozen=True)
class Animal:
    """How to make a model, and inputs for one call."""

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, torch.Tensor]]

    def born(self, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return a model in `dtype`, of the same weights every time, and inputs in that dtype."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for weight in model.parameters():  # as made some say the same to everybody
                weight += 0.1 * torch.randn_like(weight)
        model = model.to(dtype)
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in self.inputs().items()
        }
        return model, inputs


ZOO: dict[str, Animal] = {
    # text
    "bert": Animal(bert("Model"), padded),
    "bert-masked": Animal(bert("ForMaskedLM"), padded),
    "bert-pretraining": Animal(bert("ForPreTraining"), padded),
    "bert-span": Animal(bert("ForQuestionAnswering"), padded),
    "bert-tokens": Animal(bert("ForTokenClassification"), padded),
    "bert-regression": Animal(bert("ForSequenceClassification", num_labels=1), padded),
    "roberta": Animal(lambda: tf.RobertaModel(tf.RobertaConfig(**TEXT | {"pad_token_id": 1})), padded),
    "distilbert": Animal(
        lambda: tf.DistilBertModel(tf.DistilBertConfig(vocab_size=96, dim=32, hidden_dim=64, n_layers=2, n_heads=4)),
        padded,
    ),
    "electra": Animal(lambda: tf.ElectraForPreTraining(tf.ElectraConfig(**TEXT, embedding_size=16)), padded),
    "albert": Animal(lambda: tf.AlbertForPreTraining(tf.AlbertConfig(**TEXT, embedding_size=16)), padded),
    "deberta": Animal(
        lambda: tf.DebertaV2Model(
            tf.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
        ),
        padded,
    ),
    "mpnet": Animal(lambda: tf.MPNetModel(tf.MPNetConfig(**TEXT)), padded),
    "modernbert": Animal(
        lambda: tf.ModernBertModel(
            tf.ModernBertConfig(**TEXT, local_attention=4, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
        ),
        padded,
    ),
    "funnel": Animal(
        lambda: tf.FunnelModel(
            tf.FunnelConfig(
                vocab_size=96, d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1], num_decoder_layers=1
            )
        ),
        padded,
    ),
    "xlnet": Animal(lambda: tf.XLNetModel(tf.XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=4, d_inner=64)), padded),
    "longformer": Animal(
        lambda: tf.LongformerModel(tf.LongformerConfig(**TEXT | {"pad_token_id": 1}, attention_window=4)), padded
    ),
    "big-bird": Animal(
        lambda: tf.BigBirdModel(tf.BigBirdConfig(**TEXT, attention_type="original_full")), padded
    ),
    "luke": Animal(
        lambda: tf.LukeModel(tf.LukeConfig(**TEXT, entity_vocab_size=8, entity_emb_size=16)),
        lambda: padded() | {
            "entity_ids": torch.tensor([[1, 2], [3, 0]]), "entity_attention_mask": torch.tensor([[1, 1], [1, 0]]),
            "entity_position_ids": torch.tensor([[[1, 2, -1], [3, -1, -1]], [[1, -1, -1], [-1, -1, -1]]]),
        },
    ),
    "layoutlm": Animal(lambda: tf.LayoutLMModel(tf.LayoutLMConfig(**TEXT, max_2d_position_embeddings=100)), spans),
    "gpt2": Animal(
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)), padded
    ),
    "gpt2-double-heads": Animal(
        lambda: tf.GPT2DoubleHeadsModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        lambda: {"input_ids": torch.arange(3, 31).reshape(2, 2, 7), "mc_token_ids": torch.tensor([[6, 5], [6, 6]])},
    ),
    "llama": Animal(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, num_key_value_heads=2)), padded),
    "llama-classes": Animal(
        lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**TEXT, num_key_value_heads=2, num_labels=3)), padded
    ),
    "mixtral": Animal(
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4, output_router_logits=True)
        ),
        padded,
    ),
    "bloom": Animal(
        lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)), padded
    ),
    "opt": Animal(
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(
                vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=32,
            )
        ),
        padded,
    ),
    "mamba": Animal(
        lambda: tf.MambaForCausalLM(
            tf.MambaConfig(vocab_size=96, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4)
        ),
        ids,
    ),
    "rwkv": Animal(
        lambda: tf.RwkvForCausalLM(
            tf.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64)
        ),
        ids,
    ),
    "t5": Animal(
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        decoded,
    ),
    "bart": Animal(lambda: tf.BartForConditionalGeneration(tf.BartConfig(**SEQ2SEQ, pad_token_id=0)), decoded),
    "prophetnet": Animal(
        lambda: tf.ProphetNetForConditionalGeneration(
            tf.ProphetNetConfig(
                vocab_size=96, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=1,
                num_decoder_layers=1, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
                max_position_embeddings=64, pad_token_id=0, ngram=2,
            )
        ),
        decoded,
    ),
    "tapas": Animal(
        lambda: tf.TapasForQuestionAnswering(
            tf.TapasConfig(
                **TEXT, num_aggregation_labels=3, type_vocab_sizes=[4, 8, 8, 2, 8, 8, 4], average_logits_per_cell=False,
                select_one_column=True,
            )
        ),
        table,
    ),
    # pictures
    "vit": Animal(lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION, num_labels=3)), pixels),
    "vit-mae": Animal(
        lambda: tf.ViTMAEForPreTraining(
            tf.ViTMAEConfig(
                **VISION, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
                decoder_intermediate_size=16,
            )
        ),
        lambda: pixels() | {"noise": torch.rand(2, 16, generator=torch.Generator().manual_seed(0))},
    ),
    "swin": Animal(
        lambda: tf.SwinModel(tf.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)),
        pixels,
    ),
    "swin2sr": Animal(
        lambda: tf.Swin2SRForImageSuperResolution(
            tf.Swin2SRConfig(image_size=16, patch_size=1, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
        ),
        lambda: pixels(16),
    ),
    "dinov2": Animal(lambda: tf.Dinov2Model(tf.Dinov2Config(**VISION)), pixels),
    "resnet": Animal(lambda: tf.ResNetBackbone(backbone("stage2", "stage3", "stage4")), lambda: pixels(64)),
    "convnext": Animal(
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
        ),
        pixels,
    ),
    "detr": Animal(detr, lambda: pixels(64)),
    "detr-masks": Animal(detr_masks, lambda: pixels(64)),
    "conditional-detr": Animal(conditional_detr, lambda: pixels(64)),
    "deformable-detr": Animal(deformable_detr, lambda: pixels(64)),
    "deformable-detr-two-stages": Animal(
        lambda: deformable_detr(two_stage=True),
        lambda: pixels(64) | {"pixel_mask": (torch.arange(64) < 40).long().expand(2, 64, 64)},
    ),
    "rt-detr": Animal(rt_detr, lambda: pixels(64)),
    "yolos": Animal(
        lambda: tf.YolosForObjectDetection(
            tf.YolosConfig(**VISION | {"image_size": [32, 32]}, num_detection_tokens=5, num_labels=3)
        ),
        pixels,
    ),
    "grounding-dino": Animal(grounding_dino, lambda: padded() | pixels(64)),
    "mask2former": Animal(mask2former, lambda: pixels(64)),
    "maskformer": Animal(maskformer, lambda: pixels(64)),
    "segformer": Animal(
        lambda: tf.SegformerForSemanticSegmentation(
            tf.SegformerConfig(
                num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
                strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=3,
            )
        ),
        lambda: pixels(64),
    ),
    "sam": Animal(sam, lambda: pixels(32) | {"input_points": torch.full((2, 1, 1, 2), 9.0)}),
    "dpt": Animal(dpt, pixels),
    "depth-anything": Animal(depth_anything, pixels),
    "glpn": Animal(glpn, lambda: pixels(64)),
    "zoedepth": Animal(zoedepth, pixels),
    # sounds
    "wav2vec2": Animal(wav2vec2("Model"), sound),
    "wav2vec2-ctc": Animal(wav2vec2("ForCTC"), sound),
    "wav2vec2-pretraining": Animal(
        wav2vec2("ForPreTraining", num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16), sound
    ),
    "wav2vec2-speakers": Animal(
        wav2vec2("ForXVector", tdnn_dim=(16, 16, 32), tdnn_kernel=(3, 2, 1), tdnn_dilation=(1, 1, 1), xvector_output_dim=8),
        sound,
    ),
    "hubert": Animal(wav2vec2("Model", "Hubert"), sound),
    "wavlm": Animal(wav2vec2("Model", "WavLM"), sound),
    "whisper": Animal(
        lambda: tf.WhisperForConditionalGeneration(
            tf.WhisperConfig(
                **{name: value for name, value in SEQ2SEQ.items() if name != "max_position_embeddings"}, num_mel_bins=16,
                max_source_positions=10, max_target_positions=20, decoder_start_token_id=1, pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            )
        ),
        lambda: {"input_features": noise(2, 16, 20), "decoder_input_ids": torch.arange(3, 13).reshape(2, 5)},
    ),
    "audio-spectrogram": Animal(
        lambda: tf.ASTForAudioClassification(
            tf.ASTConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, patch_size=4,
                frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8, num_labels=3,
            )
        ),
        lambda: {"input_values": noise(2, 16, 8)},
    ),
    "speecht5": Animal(
        speecht5, lambda: padded() | {"decoder_input_values": noise(2, 6, 8), "speaker_embeddings": noise(2, 8)}
    ),
    "vits": Animal(vits, padded),
    "encodec": Animal(encodec, lambda: {"input_values": noise(2, 1, 400)}),
    "dac": Animal(dac, lambda: {"input_values": noise(2, 1, 400)}),
    "clap": Animal(
        lambda: tf.ClapAudioModelWithProjection(
            tf.ClapAudioConfig(
                window_size=2, num_mel_bins=16, spec_size=64, patch_size=4, patch_stride=(4, 4), depths=[1, 1],
                num_attention_heads=[2, 2], patch_embeds_hidden_size=16, hidden_size=32, projection_dim=16,
                num_hidden_layers=2,
            )
        ),
        lambda: {"input_features": noise(2, 1, 64, 16)},
    ),
    # times
    "patchtst": Animal(patches("PatchTSTForPrediction"), lambda: {"past_values": noise(2, 16, 2)}),
    "patchtst-regression": Animal(
        patches("PatchTSTForRegression", num_targets=1), lambda: {"past_values": noise(2, 16, 2)}
    ),
    "patchtsmixer": Animal(
        patches("PatchTSMixerForPrediction", "PatchTSMixerConfig"), lambda: {"past_values": noise(2, 16, 2)}
    ),
    "informer": Animal(lambda: tf.InformerForPrediction(tf.InformerConfig(**SERIES)), series),
    "time-series": Animal(
        lambda: tf.TimeSeriesTransformerForPrediction(tf.TimeSeriesTransformerConfig(**SERIES)), series
    ),
    "decision": Animal(
        lambda: tf.DecisionTransformerModel(
            tf.DecisionTransformerConfig(state_dim=6, act_dim=3, hidden_size=16, n_layer=1, n_head=2, max_ep_len=16)
        ),
        trajectory,
    ),
    # several senses
    "clip": Animal(two_towers("CLIP"), pair),
    "siglip": Animal(two_towers("Siglip"), lambda: ids() | pixels()),
    "clipseg": Animal(
        lambda: tf.CLIPSegForImageSegmentation(
            tf.CLIPSegConfig(
                text_config=tf.CLIPSegTextConfig(**TEXT, eos_token_id=16).to_dict(),
                vision_config=tf.CLIPSegVisionConfig(**VISION).to_dict(), projection_dim=16, reduce_dim=16,
                extract_layers=[0, 1], decoder_num_attention_heads=2, decoder_intermediate_size=16,
            )
        ),
        pair,
    ),
    "owlvit": Animal(two_towers("OwlViT", "ForObjectDetection"), pair),
    "owlv2": Animal(two_towers("Owlv2", "ForObjectDetection"), pair),
    "vilt": Animal(
        lambda: tf.ViltForMaskedLM(
            tf.ViltConfig(**TEXT, image_size=32, patch_size=8, num_channels=3, max_image_length=-1)
        ),
        pair,
    ),
    "lxmert": Animal(
        lambda: tf.LxmertForPreTraining(
            tf.LxmertConfig(
                vocab_size=96, hidden_size=32, num_attention_heads=4, intermediate_size=64, l_layers=1, x_layers=1,
                r_layers=1, visual_feat_dim=16, num_object_labels=3, num_attr_labels=3, num_qa_labels=3,
            )
        ),
        visual_features,
    ),
    "flava": Animal(
        lambda: tf.FlavaModel(
            tf.FlavaConfig(
                text_config=tf.FlavaTextConfig(**TEXT).to_dict(), image_config=tf.FlavaImageConfig(**VISION).to_dict(),
                multimodal_config=tf.FlavaMultimodalConfig(
                    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
                ).to_dict(),
                hidden_size=32, projection_dim=16,
            )
        ),
        pair,
    ),
    "llava": Animal(
        llava, lambda: {"input_ids": torch.tensor([[1, 95, 95, 95, 95, 7, 8]]), **pixels(16, rows=1)}
    ),
}  # fmt: skip
