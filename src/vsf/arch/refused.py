"""The denoisers of diffusers that cannot be guided, each with the reason: read off their source in 0.42.1.

With "not yet" a reason says what stands in the way of who would like to add the model. The error of `find_models` and
the table in docs/models.md are made of these.
"""

from __future__ import annotations

__all__ = ["REFUSED"]

_NO_TEXT = "it takes no text"
_PART = "it is a part of other models, not a whole one"
_KEYS_ONLY = "not yet: the text joins the image's attention as keys alone, as in PRX; not tried"
_PER_BLOCK = "not yet: every block takes another layer of the text encoder, so the negative has to be given for each"
_PER_FRAME = "not yet: the text is repeated for every frame, so its rows are frames and not samples"
_COGVIDEO = "not yet: joint attention as in CogView4, but positions for a fixed number of text tokens; needs a tap"
_KANDINSKY = "not yet: blocks of their own mix the text before the cross attention over it; needs taps and positions"

#: Class name -> why.
REFUSED: dict[str, str] = {
    "AceStepTransformer1DModel": (
        "not yet: style, lyrics and voice come as one sequence from a condition encoder that encode would have to run"
    ),
    "AnyFlowFARTransformer3DModel": (
        "not yet: text and blocks are AnyFlow's, but it draws chunk by chunk with a key-value cache and flex attention"
    ),
    "AuraFlowTransformer2DModel": (
        "not yet: the model puts register tokens in front of the text, as the negative needs too; needs a tap"
    ),
    "BriaFibo2Transformer2DModel": (
        "not yet: a perceiver pools the text, to more tokens where it is longer, and some blocks read it again"
    ),
    "BriaFiboTransformer2DModel": _PER_BLOCK,
    "CogVideoXTransformer3DModel": _COGVIDEO,
    "ConsisIDTransformer3DModel": _COGVIDEO,
    "Cosmos3OmniTransformer": (
        "not yet: samples are packed into one sequence, and blocks attend twice, causally and to everything"
    ),
    "CosmosTransformer3DModel": "not yet: a cross attention over the text, in Cosmos 2.5 over an image as well",
    "DiTTransformer2DModel": "it takes a class label and no text",
    "DreamLiteTransformer2DModel": _PART,
    "EasyAnimateTransformer3DModel": (
        "not yet: joint attention as in CogView4, but a second text may stand behind the first; needs its own encode"
    ),
    "ErnieImageTransformer2DModel": (
        "not yet: the image's positions start where the text ends, so the text cannot simply grow; needs taps"
    ),
    "Flux3Transformer2DModel": "not yet: blocks of their own mix the text before it meets the image; needs a tap",
    "GlmImageTransformer2DModel": "not yet: CogView4's attention with a key-value cache of pictures; not tried",
    "HiDreamImageTransformer2DModel": _PER_BLOCK,
    "HunyuanDiT2DModel": (
        "not yet: one of two texts is pooled into the time embedding, and masked tokens are not hidden; needs taps"
    ),
    "HunyuanImageTransformer2DModel": (
        "not yet: HunyuanVideo's blocks, with a second text sorted in front of the first; needs a tap"
    ),
    "HunyuanVideo15Transformer3DModel": (
        "not yet: two texts and an image are sorted into one sequence inside the model, sample by sample; needs a tap"
    ),
    "HunyuanVideoFramepackTransformer3DModel": (
        "not yet: HunyuanVideo's blocks, with image tokens in front of the text that the negative needs as well"
    ),
    "I2VGenXLUNet": _PER_FRAME,
    "Ideogram4Transformer2DModel": (
        "not yet: text and image come packed into one sequence, with positions and segments that the caller lays out"
    ),
    "JoyImageEditPlusTransformer3DModel": "not yet: double-stream joint attention as in Qwen-Image; not tried",
    "JoyImageEditTransformer3DModel": "not yet: double-stream joint attention as in Qwen-Image; not tried",
    "Kandinsky3UNet": "not yet: the text is also pooled into the time embedding inside the model; needs a tap",
    "Kandinsky5Transformer3DModel": _KANDINSKY,
    "Kandinsky6SRTransformer3DModel": _NO_TEXT,
    "Kandinsky6Transformer3DModel": _KANDINSKY,
    "Krea2Transformer2DModel": (
        "not yet: layers and tokens of the text are mixed before it meets the image; needs a tap and positions"
    ),
    "LatteTransformer3DModel": _PER_FRAME,
    "LongCatAudioDiTTransformer": (
        "not yet: the text is convolved, and its mean joins the time embedding, inside the model; needs taps"
    ),
    "LuminaNextDiT2DModel": "not yet: the mean of the text joins the time embedding inside the model; needs a tap",
    "MiniMaxH3Transformer3DModel": (
        "not yet: text, video and sound are packed into one sequence, behind a refiner that mixes the text; needs taps"
    ),
    "MiniMaxMusic3RVQDepthDecoder": "it predicts codes of sound one after another and takes no text",
    "MiniMaxMusic3Transformer1DModel": "its condition is a channel of every frame of sound, not text to attend to",
    "MochiTransformer3DModel": "not yet: its processor attends once per sample, not once per batch",
    "MotifVideoTransformer3DModel": "not yet: its blocks may attend to the text twice, jointly and across",
    "MotionAdapter": _PART,
    "NucleusMoEImageTransformer2DModel": _KEYS_ONLY,
    "OmniGenTransformer2DModel": (
        "not yet: the prompt comes as token ids, in one sequence with the image that the caller lays out"
    ),
    "PriorTransformer": "it predicts one embedding from a sequence of fixed length, text first, under a causal mask",
    "QwenImage21Transformer2DModel": (
        "not yet: the prompt is a causal prefix with a key-value cache, and a processor attends several times"
    ),
    "RFD4ProteinaTransformer": "it makes proteins and takes no text",
    "SanaWMLTX2RefinerTransformer3DModel": "not yet: LTX-2's blocks, with a key-value cache over chunks; not tried",
    "SanaWMTransformer3DModel": "not yet: one cross attention over the text per block; not tried",
    "StableAudio3DiTModel": "not yet: a block takes the difference of two attentions over the text",
    "StableAudioDiTModel": "not yet: the seconds asked for stand behind the text; needs its own encode",
    "StableCascadeUNet": _KEYS_ONLY,
    "T5FilmDecoder": "it takes notes of music and no text",
    "Transformer2DModel": _PART,
    "TransformerTemporalModel": _PART,
    "UNet1DModel": _NO_TEXT,
    "UNet2DModel": _NO_TEXT,
    "UNet3DConditionModel": _PER_FRAME,
    "UNetControlNetXSModel": "not yet: Stable Diffusion and its control side by side in every block; not tried",
    "UNetMotionModel": _PER_FRAME,
    "UNetSpatioTemporalConditionModel": "it takes an image and no text",
    "UVit2DModel": "not yet: it predicts masked tokens, not noise; not tried",
    "WanAnimate2Transformer3DModel": (
        "not yet: the model pads a list of texts itself, to a fixed length, and has a key-value cache of the picture"
    ),
}
