"""Tiny random models that hear, each with its feature extractor."""

from __future__ import annotations

import torch
import transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RATE = 16_000


def tiny_wav2vec2(*, masked: bool, family: str = "Wav2Vec2"):
    """Masked models are told which samples are padding, others (their convolutions normalise groups) are not."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **SIZES,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 8, 8),
        conv_kernel=(10, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if masked else "group",
        do_stable_layer_norm=masked,
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    return getattr(transformers, f"{family}Model")(config).eval(), extractor


def tiny_whisper():
    """Two seconds at once, 100 frames."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        num_mel_bins=20,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    return transformers.WhisperForConditionalGeneration(config).eval(), extractor


def tiny_spectrogram_transformer():
    """1.295 seconds at once: 128 steps of 32 bins, seen as 3 bands of 15 patches."""
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        **SIZES, max_length=128, num_mel_bins=32, frequency_stride=8, time_stride=8, patch_size=16
    )
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    return transformers.ASTModel(config).eval(), extractor


def tiny_speech_to_text():
    """Any length, as a spectrogram; an encoder-decoder that is told which steps are padding."""
    torch.manual_seed(0)
    config = transformers.Speech2TextConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        input_feat_per_channel=20,
        conv_channels=32,
        max_source_positions=800,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    extractor = transformers.Speech2TextFeatureExtractor(feature_size=20, num_mel_bins=20)
    return transformers.Speech2TextModel(config).eval(), extractor


def tiny_streaming():
    """Any length; a position sees 4 before it and 1 after it, which is told to attention as a boolean mask."""
    torch.manual_seed(0)
    config = transformers.NemotronAsrStreamingEncoderConfig(
        **SIZES, sliding_window=5, default_num_lookahead_tokens=1, subsampling_conv_channels=16
    )
    extractor = transformers.NemotronAsrStreamingFeatureExtractor()
    return transformers.NemotronAsrStreamingEncoder(config).eval(), extractor
