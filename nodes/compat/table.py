"""The table of the private names that the pack relies on: where they are, how they are used, and what needs them.

Private is whatever is outside `comfy_api.latest` and `folder_paths`. Seen in ComfyUI 0.30.0 to 0.33.0 and upstream of
2026-08-22, with comfy-aimdo 0.4.11 to 0.6.0 and comfy-kitchen 0.2.26 to 0.2.40.
"""

from __future__ import annotations

from .contract import Feature, Name

LOADING = (Feature.LOADING,)
TEXT = (Feature.TEXT_ENCODER,)
UPSCALERS = (Feature.UPSCALERS,)
BOTH_LOADERS = (Feature.LOADING, Feature.TEXT_ENCODER)
ALL_LOADERS = (Feature.LOADING, Feature.TEXT_ENCODER, Feature.UPSCALERS)
LORA = (Feature.LORA,)
SAVING = (Feature.SAVING,)
FAST_PATH = (Feature.FAST_PATH,)
FIRST_LOAD = (Feature.FIRST_LOAD,)
# What tells where dynamic VRAM has a layer; a recording replays with those addresses.
RESIDENT = (Feature.FAST_PATH, Feature.FIRST_LOAD, Feature.RECORDINGS)
STILL_LOADED = (Feature.STILL_LOADED,)
DECODING = (Feature.DECODING,)
CALIBRATING = (Feature.CALIBRATING,)
SEVERAL = (Feature.SEVERAL_GPUS,)
LENT = (Feature.FAST_PATH, Feature.FIRST_LOAD, Feature.RECORDINGS, Feature.KEPT_DECODED)

# A ComfyUI before 0.32.0 does not know LTX-2.5: that is no difference.
_BEFORE_LTX25 = Name(
    "comfy.text_encoders.lt.LTXAVTEModel.__init__",
    (Feature.GEMMA_4, Feature.UPSCALERS),
    sets="dtypes compat_mode text_projection_type gemma3_12b text_embedding_projection",
)


def _ltx25(path: str, feature: Feature = Feature.GEMMA_4, **how: str) -> Name:
    return Name(path, (feature,), otherwise=_BEFORE_LTX25, **how)


OPERATIONS = (
    Name("comfy.ops.run_every_op", BOTH_LOADERS, call=""),
    Name("comfy.ops.run_every_op", (Feature.RECORDINGS,), mentions="throw_exception_if_processing_interrupted"),
    Name(
        "comfy.ops.cast_bias_weight",
        BOTH_LOADERS,
        call="s, input, dtype=, device=, bias_dtype=, offloadable=",
        mentions="weight_function bias_function weight bias",
    ),
    Name("comfy.ops.uncast_bias_weight", BOTH_LOADERS, call="s, weight, bias, offload_stream"),
    Name("comfy.ops.manual_cast", BOTH_LOADERS, mentions="Linear"),
    Name(
        "comfy.ops.manual_cast.Linear",
        BOTH_LOADERS,
        parameters="in_features out_features bias device dtype",
        mentions="comfy_cast_weights weight_function bias_function forward_comfy_cast_weights forward",
    ),
    Name(
        "comfy.ops.disable_weight_init.Linear.__init__",
        BOTH_LOADERS,
        sets="in_features out_features weight bias comfy_need_lazy_init_bias weight_comfy_model_dtype bias_comfy_model_dtype",
    ),
    Name("comfy.ops.manual_cast.Linear.forward_comfy_cast_weights", BOTH_LOADERS, call="self, input"),
    Name("comfy.ops.disable_weight_init", UPSCALERS, mentions="Linear Conv2d Conv3d"),
    # The methods that whoever patches a weight asks a module for.
    Name("comfy.model_patcher.get_key_weight", BOTH_LOADERS, call="model, key", mentions="set_{} convert_{}"),
)

# Dynamic VRAM: attributes of modules, and the memory that comfy_aimdo lends.
DYNAMIC_VRAM = (
    Name("comfy.memory_management.aimdo_enabled", (Feature.FROM_FILES,)),
    Name(
        "comfy.ops.cast_modules_with_vbar",
        RESIDENT,
        mentions="_v _v_signature _prefetch signature resident weight bias _lowvram_function",
    ),
    Name("comfy.ops.resolve_cast_module_with_vbar", RESIDENT, mentions="_v_weight _v_bias _v_signature _prefetch"),
    Name("comfy.model_patcher.ModelPatcherDynamic.load", LENT, mentions="_v _v_signature vbar alloc _lowvram_function"),
    Name("comfy.model_patcher.ModelPatcherDynamic.load", FIRST_LOAD, mentions="_model_dtype _pin_state"),
    Name("comfy.pinned_memory.get_pin", FIRST_LOAD, mentions="_pins pin"),
    Name("comfy.utils.load_safetensors", FIRST_LOAD, mentions="_comfy_tensor_file_slice TensorFileSlice"),
    Name("comfy.memory_management.TensorFileSlice", FIRST_LOAD, mentions="file_ref offset size"),
    Name("comfy.memory_management.interpret_gathered_like", FIRST_LOAD, call="tensors, gathered"),
    Name("comfy.cli_args.args.high_ram", FIRST_LOAD),
    Name(
        "comfy.cli_args.args.disable_pinned_memory",
        FIRST_LOAD,
        otherwise=Name("comfy.model_management.DISABLE_PINNED_MEMORY", FIRST_LOAD),
    ),
    Name("comfy.model_management.current_loaded_models", (Feature.FIRST_LOAD, Feature.RECORDINGS)),
    Name("comfy.model_management.LoadedModel", (Feature.FIRST_LOAD, Feature.RECORDINGS), mentions="model"),
    Name("comfy.model_management.get_free_memory", (Feature.FIRST_LOAD, Feature.RECORDINGS), call="dev"),
    Name("comfy.model_management.minimum_inference_memory", (Feature.FIRST_LOAD, Feature.RECORDINGS), call=""),
    Name("comfy.model_management.throw_exception_if_processing_interrupted", FIRST_LOAD, call=""),
    Name("comfy_aimdo.host_buffer.HostBuffer", FIRST_LOAD, call="size, mark_cold="),
    Name(
        "comfy_aimdo.host_buffer.HostBuffer.read_file_slice",
        FIRST_LOAD,
        call="self, file_obj, file_offset, size, offset=, stream=, device_ptr=, device=",
    ),
    Name("comfy_aimdo.torch.aimdo_to_tensor", (Feature.FIRST_LOAD, Feature.KEPT_DECODED), call="alloc, device"),
    Name("comfy_aimdo.model_vbar.vbar_fault", LENT, call="alloc"),
    Name("comfy_aimdo.model_vbar.vbar_unpin", LENT, call="alloc"),
    Name("comfy_aimdo.model_vbar.vbar_signature_compare", FAST_PATH, call="a, b"),
    # An allocation is (reservation, start, size).
    Name("comfy_aimdo.model_vbar.ModelVBAR", (Feature.KEPT_DECODED,), call="size, device"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.alloc", LENT, call="self, num_bytes"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.prioritize", (Feature.KEPT_DECODED,), call="self"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.deprioritize", (Feature.KEPT_DECODED,), call="self"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.free_memory", (Feature.KEPT_DECODED,), call="self, size_bytes"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.fault", (Feature.RECORDINGS,), call="self, alloc, size"),
    Name("comfy_aimdo.model_vbar.ModelVBAR.unpin", (Feature.RECORDINGS,), call="self, alloc, size"),
)

PATCHERS = (
    Name(
        "comfy.model_patcher.ModelPatcher",
        BOTH_LOADERS,
        mentions="model patches backup load_device offload_device hook_mode model_options cached_patcher_init is_dynamic "
        "model_size loaded_size clone parent attachments add_callback_with_key remove_callbacks_with_key",
    ),
    Name("comfy.model_patcher.ModelPatcher.is_dynamic", ALL_LOADERS, call="self"),
    Name("comfy.model_patcher.ModelPatcher.model_size", LOADING, call="self"),
    Name("comfy.model_patcher.ModelPatcher.loaded_size", FIRST_LOAD, call="self"),
    Name("comfy.model_patcher.ModelPatcher.add_callback_with_key", BOTH_LOADERS, call="self, call_type, key, callback"),
    Name("comfy.model_patcher.ModelPatcher.remove_callbacks_with_key", BOTH_LOADERS, call="self, call_type, key"),
    Name("comfy.model_patcher.ModelPatcher", BOTH_LOADERS, mentions="model_loaded_weight_memory"),
    Name(
        "comfy.model_patcher.ModelPatcher.patch_weight_to_device",
        BOTH_LOADERS,
        parameters="key device_to inplace_update return_weight force_cast",
        mentions="backup weight inplace_update",
    ),
    Name("comfy.model_patcher.ModelPatcher.unpatch_model", BOTH_LOADERS, parameters="device_to unpatch_weights"),
    Name(
        "comfy.model_patcher.ModelPatcher.partially_unload",
        BOTH_LOADERS,
        parameters="device_to memory_to_free force_patch_weights",
    ),
    Name(
        "comfy.model_patcher.ModelPatcherDynamic", BOTH_LOADERS, mentions="load partially_unload restore_loaded_backups"
    ),
    Name(
        "comfy.model_patcher.ModelPatcherDynamic.load",
        BOTH_LOADERS,
        mentions="device_to patch_weight_to_device force_cast set_attr_param weight",
    ),
    Name(
        "comfy.model_patcher.ModelPatcherDynamic.partially_unload",
        BOTH_LOADERS,
        parameters="device_to memory_to_free force_patch_weights",
    ),
    # What a load does, and depends on, that still_loaded.py leaves out or looks at.
    Name(
        "comfy.model_patcher.ModelPatcherDynamic.load",
        STILL_LOADED,
        mentions="restore_loaded_backups unpatch_hooks _vbar_get prioritize dynamic_pins failed active _load_list patches "
        "weight_wrapper_patches forced_hooks get_all_callbacks ON_LOAD",
    ),
    Name("comfy.model_patcher.ModelPatcherDynamic.partially_unload", STILL_LOADED, mentions="restore_loaded_backups"),
    Name("comfy.model_patcher.ModelPatcherDynamic.restore_loaded_backups", STILL_LOADED, parameters=""),
    Name("comfy.model_patcher.ModelPatcherDynamic._vbar_get", STILL_LOADED, call="self, create="),
    Name(
        "comfy.model_patcher.ModelPatcher",
        STILL_LOADED,
        mentions="patches_uuid object_patches injections hook_patches callbacks weight_wrapper_patches forced_hooks",
    ),
    Name("comfy.model_patcher.CoreModelPatcher", UPSCALERS, call="model, load_device=, offload_device="),
    # Callbacks, and what they are called with.
    Name("comfy.patcher_extension.CallbacksMP.ON_LOAD", BOTH_LOADERS),
    Name("comfy.patcher_extension.CallbacksMP.ON_CLONE", BOTH_LOADERS),
    Name("comfy.patcher_extension.CallbacksMP.ON_PRE_RUN", BOTH_LOADERS),
    Name("comfy.patcher_extension.CallbacksMP.ON_CLEANUP", BOTH_LOADERS),
    Name("comfy.model_patcher.ModelPatcher.load", BOTH_LOADERS, mentions="get_all_callbacks ON_LOAD"),
    Name("comfy.model_patcher.ModelPatcher.clone", BOTH_LOADERS, mentions="get_all_callbacks ON_CLONE"),
    Name("comfy.model_patcher.ModelPatcher.pre_run", BOTH_LOADERS, mentions="get_all_callbacks ON_PRE_RUN"),
    Name("comfy.model_patcher.ModelPatcher.cleanup", BOTH_LOADERS, mentions="get_all_callbacks ON_CLEANUP"),
    Name("comfy.hooks.EnumHookMode", BOTH_LOADERS, mentions="MinVram"),
    Name("comfy.hooks.EnumHookMode.MinVram", BOTH_LOADERS),
    Name("comfy.utils.set_attr", BOTH_LOADERS, call="obj, attr, value"),
    Name("comfy.utils.get_attr", BOTH_LOADERS, call="obj, attr"),
)

# What stands around a sampling run, and what it asks its guider for.
AROUND_SAMPLING = (
    Name("comfy.patcher_extension.WrappersMP.OUTER_SAMPLE", CALIBRATING),
    Name("comfy.model_patcher.ModelPatcher.add_wrapper_with_key", CALIBRATING, call="self, wrapper_type, key, wrapper"),
    Name("comfy.model_patcher.ModelPatcher", CALIBRATING, mentions="patches hook_patches injections model_options"),
    Name("comfy.patcher_extension.WrapperExecutor", CALIBRATING, mentions="class_obj"),
    Name("comfy.samplers.CFGGuider.sample", CALIBRATING, mentions="outer_sample OUTER_SAMPLE model_patcher"),
)

PATCHES = (
    Name("comfy.model_patcher.LowVramPatch", LORA, mentions="is_lowvram_patch"),
    # Functions of a weight, which a load moves to its device.
    Name("comfy.model_patcher.move_weight_functions", LORA, mentions="weight_function move_to device"),
    Name("comfy.model_patcher.ModelPatcher.add_patches", LORA, parameters="patches strength_patch strength_model"),
    Name(
        "comfy.model_patcher.ModelPatcher.add_hook_patches",
        LORA,
        parameters="hook patches strength_patch strength_model",
    ),
    Name("comfy.weight_adapter.base.WeightAdapterBase.bypass_forward", LORA, call="self, org_forward, x"),
    Name("comfy.weight_adapter.bypass.BypassForwardHook", LORA, mentions="adapter eject forward"),
    Name("comfy.patcher_extension.CallbacksMP.ON_INJECT_MODEL", BOTH_LOADERS),
    Name("comfy.model_patcher.ModelPatcher.inject_model", LORA, mentions="get_all_callbacks ON_INJECT_MODEL"),
    Name("comfy.lora.calculate_weight", LORA, call="patches, weight, key, intermediate_dtype=, original_weights="),
    Name("comfy.lora.calculate_weight", LORA, mentions="WeightAdapterBase"),
    Name("comfy.weight_adapter.base.WeightAdapterBase", LORA, mentions="name loaded_keys weights"),
    Name("comfy.weight_adapter.lora.LoRAAdapter", LORA, call="loaded_keys, weights"),
    # The six that a LoRA's weights are.
    Name("comfy.weight_adapter.lora.LoraDiff", LORA, mentions="mat1 mat2 alpha mid dora_scale reshape"),
    Name(
        "comfy.model_patcher.ModelPatcher.patch_hook_weight_to_device",
        LORA,
        parameters="hooks combined_patches key original_weights memory_counter",
    ),
    Name("comfy.model_patcher.ModelPatcher.unpatch_hooks", LORA, parameters="whitelist_keys_set"),
    Name(
        "comfy.model_patcher.ModelPatcher.model_state_dict_for_saving",
        SAVING,
        parameters="model prefix",
        mentions="state_dict LazyCastingParam",
    ),
    Name("comfy.model_patcher.LazyCastingParam", SAVING, mentions="device to"),
    Name("comfy.model_patcher.ModelPatcher", SAVING, mentions="state_dict_for_saving"),
    Name("comfy.model_patcher.ModelPatcher.state_dict_for_saving", SAVING, mentions="model_state_dict_for_saving"),
    Name("comfy.sd.VAE.get_sd", SAVING, parameters=""),
    Name("comfy.utils.save_torch_file", SAVING, call="sd, ckpt, metadata"),
)

MODELS = (
    Name("comfy.model_management.get_torch_device", ALL_LOADERS, call=""),
    Name("comfy.model_management.get_torch_device_name", LOADING, call="device"),
    Name("comfy.model_management.get_total_memory", LOADING, call="dev"),
    Name("comfy.utils.ProgressBar", ALL_LOADERS, call="total"),
    Name("comfy.utils.ProgressBar.update", LOADING, call="self, value"),
    Name("comfy.utils.ProgressBar.update_absolute", LOADING, call="self, value"),
    Name("comfy.utils.load_torch_file", (Feature.FROM_FILES, Feature.TEXT_ENCODER), call="ckpt"),
    Name(
        "comfy.sd.load_diffusion_model_state_dict",
        LOADING,
        call="sd, model_options=, metadata=, disable_dynamic=",
        mentions="custom_operations",
    ),
    Name("comfy.model_detection.unet_prefix_from_state_dict", LOADING, call="state_dict"),
    Name("comfy.supported_models_base.BASE", LOADING, mentions="process_unet_state_dict vae_key_prefix"),
    Name("comfy.model_base.BaseModel", LOADING, mentions="diffusion_model model_config"),
    Name("comfy.sd.VAE", LOADING, call="sd=, metadata=", mentions="first_stage_model patcher"),
    Name("comfy.nested_tensor.NestedTensor", UPSCALERS, call="tensors", mentions="is_nested unbind"),
    Name(
        "comfy.ldm.lightricks.latent_upsampler.LatentUpsampler",
        UPSCALERS,
        mentions="spatial_upsample temporal_upsample",
    ),
    Name("comfy.ldm.lightricks.latent_upsampler.LatentUpsampler", UPSCALERS, mentions="in_channels"),
    Name("comfy.ldm.lightricks.latent_upsampler.LatentUpsampler.from_config", UPSCALERS, call="config, operations="),
    Name(
        "comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE",
        UPSCALERS,
        mentions="per_channel_statistics",
    ),
    _ltx25(
        "comfy.ldm.lightricks.vae.na_diffusion_decoder.CausalDiffusionVAE",
        Feature.UPSCALERS,
        mentions="per_channel_statistics",
    ),
    Name(
        "comfy.ldm.lightricks.vae.causal_video_autoencoder.processor",
        UPSCALERS,
        mentions="std-of-means",
    ),
    Name("comfy_extras.nodes_lt_upsampler.LTXVLatentUpsampler.execute", UPSCALERS, call="samples, upscale_model, vae"),
    Name("comfy.model_management.vae_dtype", UPSCALERS, call="allowed_dtypes="),
    Name("comfy.model_management.archive_model_dtypes", UPSCALERS, call="model"),
    Name("comfy.model_management.unet_offload_device", UPSCALERS, call=""),
    Name("comfy.cli_args.args.disable_metadata", (Feature.METADATA,)),
    Name("server.create_origin_only_middleware", (Feature.ORIGIN,), call=""),
)

# LTX's video decoder, which hands frames to what it is given for a buffer, and what VAE.decode does around it.
_VIDEO_VAE = "comfy.ldm.lightricks.vae.causal_video_autoencoder"
DECODER = (
    Name(
        f"{_VIDEO_VAE}.VideoVAE",
        DECODING,
        mentions="decoder comfy_has_chunked_io timestep_conditioning per_channel_statistics",
    ),
    Name(f"{_VIDEO_VAE}.VideoVAE.decode", DECODING, call="self, x, output_buffer="),
    Name(f"{_VIDEO_VAE}.Decoder", DECODING, mentions="conv_in causal get_max_chunk_size temporal_cache_state"),
    Name(
        f"{_VIDEO_VAE}.Decoder.run_up",
        DECODING,
        parameters="idx sample_ref ended timestep_shift_scale scaled_timestep checkpoint_fn output_buffer output_offset "
        "max_chunk_size",
        mentions="copy_",
    ),
    Name(f"{_VIDEO_VAE}.mark_conv3d_ended", DECODING, call="module"),
    Name(f"{_VIDEO_VAE}.processor.un_normalize", DECODING, call="self, x"),
    Name(f"{_VIDEO_VAE}.get_max_chunk_size", DECODING, parameters="device"),
    Name("comfy.ldm.lightricks.vae.causal_conv3d.CausalConv3d", DECODING, mentions="out_channels temporal_cache_state"),
    Name(
        "comfy.sd.VAE",
        DECODING,
        mentions="first_stage_model patcher device vae_dtype vae_output_dtype process_output disable_offload latent_dim "
        "latent_channels throw_exception_if_invalid temporal_compression_decode spacial_compression_decode",
    ),
    Name("comfy.sd.VAE.decode_tiled", DECODING, call="self, samples, tile_x=, tile_y=, overlap=, tile_t=, overlap_t="),
    Name("comfy.model_patcher.ModelPatcher.get_free_memory", DECODING, call="self, device"),
    Name("comfy.model_management.load_models_gpu", DECODING, call="models, memory_required=, force_full_load="),
    Name("comfy.model_management.cuda_device_context", DECODING, call="device"),
    Name("comfy.model_management.dtype_size", DECODING, call="dtype"),
    Name("comfy.model_management.raise_non_oom", DECODING, call="e"),
    Name("comfy.model_management.soft_empty_cache", DECODING, call=""),
    Name("comfy_extras.nodes_lt_audio.LTXVAudioVAEDecode.execute", DECODING, call="samples, audio_vae"),
)

SAMPLING = (
    Name(
        "comfy.ldm.lightricks.av_model.LTXAVModel._process_transformer_blocks",
        (Feature.RECORDINGS,),
        parameters="x context attention_mask timestep pe transformer_options self_attention_mask kwargs",
        mentions="transformer_blocks vx ax",
    ),
    Name("comfy.ldm.lightricks.model.LTXVModel", (Feature.FEWER_PASSES,)),
    Name(
        "comfy.ldm.modules.attention.attention_pytorch",
        (Feature.FASTER_ATTENTION,),
        call="q, k, v, heads",
        mentions="mask skip_reshape skip_output_reshape",
    ),
    Name("comfy.ldm.modules.attention.get_attention_function", (Feature.FASTER_ATTENTION,), call="name, default"),
    Name("comfy.ldm.modules.attention.optimized_attention", (Feature.RECORDINGS,)),
    Name(
        "comfy.ldm.modules.attention.wrap_attn",
        (Feature.FASTER_ATTENTION,),
        mentions="transformer_options optimized_attention_override",
    ),
)

GEMMA_4 = (
    _ltx25(
        "comfy.text_encoders.gemma4.Gemma4_12B_Config",
        call="vocab_size=, hidden_size=, intermediate_size=, num_hidden_layers=, num_attention_heads=, "
        "num_key_value_heads=",
        mentions="head_dim global_head_dim num_global_key_value_heads vision_config",
    ),
    _ltx25("comfy.text_encoders.gemma4.Gemma4_12B.tokenizer"),
    _ltx25("comfy.text_encoders.gemma4.Gemma4_12B.__init__", parameters="config_dict dtype device operations", sets=""),
    _ltx25("comfy.text_encoders.gemma4.Gemma4_12B._init_model", call="self, config, dtype, device, operations"),
    _ltx25("comfy.text_encoders.gemma4.gemma4_text_encoder_model", call="model_class"),
    _ltx25("comfy.text_encoders.lt.ltxav_te", call="text_encoder_model=, text_encoder_key="),
    _ltx25("comfy.text_encoders.lt.sd_detect", call="state_dict_list"),
    _ltx25("comfy.text_encoders.lt.ltxav_gemma4_tokenizer", call="tokenizer"),
)

# LTX's blocks on a part of the video's tokens, and the same ComfyUI in several processes.
_LTX = "comfy.ldm.lightricks"
SEVERAL_GPUS = (
    Name(
        f"{_LTX}.av_model.LTXAVModel._process_transformer_blocks",
        SEVERAL,
        parameters="x context attention_mask timestep pe transformer_options self_attention_mask kwargs",
        mentions="transformer_blocks vx ax",
    ),
    Name(f"{_LTX}.av_model.BasicAVTransformerBlock", SEVERAL, mentions="attn1 video_to_audio_attn"),
    Name(
        f"{_LTX}.av_model.BasicAVTransformerBlock.forward", SEVERAL, mentions="attn1 video_to_audio_attn pe mask k_pe"
    ),
    Name(
        f"{_LTX}.model.CrossAttention.forward",
        SEVERAL,
        call="self, x, context=, mask=, pe=, k_pe=, transformer_options=",
    ),
    Name(f"{_LTX}.model.CrossAttention.forward", SEVERAL, mentions="optimized_attention heads attn_precision"),
    Name(f"{_LTX}.model.GuideAttentionMask", SEVERAL, mentions="guide_start tracked_count noisy_mask tracked_mask"),
    Name(
        f"{_LTX}.model._attention_with_guide_mask",
        SEVERAL,
        parameters="q k v heads guide_mask attn_precision transformer_options",
    ),
    Name(
        f"{_LTX}.av_model.CompressedTimestep",
        SEVERAL,
        mentions="data batch_size num_frames patches_per_frame feature_dim expand expand_for_computation",
    ),
    Name(f"{_LTX}.model.LTXBaseModel._forward", SEVERAL, mentions="_process_transformer_blocks"),
    Name(f"{_LTX}.model.LTXBaseModel.forward", SEVERAL, mentions="_forward"),
    Name("comfy.ldm.modules.attention.wrap_attn", SEVERAL, mentions="transformer_options optimized_attention_override"),
    Name("comfy.patcher_extension.WrappersMP.OUTER_SAMPLE", SEVERAL),
    Name("comfy.samplers.CFGGuider.outer_sample", SEVERAL, call="self, noise, latent_image, sampler, sigmas"),
    Name("comfy.samplers.CFGGuider", SEVERAL, mentions="model_patcher model_options conds"),
    Name("comfy.model_patcher.ModelPatcher.add_wrapper_with_key", SEVERAL, call="self, wrapper_type, key, wrapper"),
    Name("comfy.model_patcher.ModelPatcher.remove_wrappers_with_key", SEVERAL, call="self, wrapper_type, key"),
    Name("comfy.model_patcher.ModelPatcher.get_additional_models_with_key", SEVERAL, call="self, key"),
    Name("comfy.model_patcher.ModelPatcher.pre_run", SEVERAL, call="self"),
    Name("comfy.model_patcher.ModelPatcher.cleanup", SEVERAL, call="self"),
    Name(
        "comfy.model_patcher.ModelPatcher",
        SEVERAL,
        mentions="patches patches_uuid object_patches injections hook_patches weight_wrapper_patches wrappers",
    ),
    Name("comfy.model_base.BaseModel.memory_required", SEVERAL, call="self, input_shape"),
    Name("comfy.model_management.load_models_gpu", SEVERAL, call="models, memory_required=, minimum_memory_required="),
    Name("comfy.model_management.processing_interrupted", SEVERAL, call=""),
    Name("comfy.model_management.InterruptProcessingException", SEVERAL),
    Name("comfy.weight_adapter.adapters", SEVERAL),
)

TEXT_ENCODER = (
    Name("comfy.sd.TEModel", (Feature.GEMMA_4,)),
    *GEMMA_4,
    Name(
        "comfy.sd.CLIP",
        TEXT,
        call="target, embedding_directory=, tokenizer_data=, parameters=, state_dict=, model_options=, disable_dynamic=",
        mentions="params clip tokenizer load_device offload_device patcher cond_stage_model",
    ),
    Name("comfy.utils.load_torch_file", TEXT, call="ckpt, safe_load=, return_metadata="),
    Name("comfy.utils.convert_old_quants", TEXT, call="state_dict, model_prefix=, metadata="),
    Name(
        "comfy.text_encoders.hunyuan_video.llama_detect",
        TEXT,
        call="state_dict",
        mentions="dtype_llama llama_quantization_metadata",
    ),
    Name("comfy.text_encoders.lt.LTXAVGemmaTokenizer", TEXT, call="embedding_directory=, tokenizer_data="),
    Name(
        "comfy.text_encoders.lt.LTXAVTEModel",
        TEXT,
        mentions="gemma3_12b text_embedding_projection dual_linear operations device dtype model_options",
    ),
    Name(
        "comfy.text_encoders.lt.LTXAVTEModel",
        TEXT,
        call="dtype_llama=, device=, dtype=, text_projection_type=, text_encoder_model=, video_projection_dim=, "
        "audio_projection_dim=, model_options=",
        otherwise=Name(
            "comfy.text_encoders.lt.LTXAVTEModel.__init__",
            TEXT,
            sets="dtypes compat_mode text_projection_type gemma3_12b text_embedding_projection",
        ),
    ),
    Name(
        "comfy.text_encoders.lt.LTXAVTEModel.memory_estimation_function",
        TEXT,
        parameters="token_weight_pairs device",
    ),
    Name(
        "comfy.text_encoders.lt.DualLinearProjection",
        TEXT,
        call="in_dim, out_dim_video, out_dim_audio, dtype=, device=, operations=",
        mentions="video_aggregate_embed audio_aggregate_embed",
    ),
    Name(
        "comfy.text_encoders.lt.Gemma3_12BModel.__init__",
        TEXT,
        sets="dtypes",
        mentions="layer_norm_hidden_state enable_attention_masks return_attention_masks textmodel_json_config",
    ),
    Name(
        "comfy.sd1_clip.SDClipModel",
        TEXT,
        call="device=, layer=, textmodel_json_config=, dtype=, special_tokens=, layer_norm_hidden_state=, model_class=, "
        "enable_attention_masks=, return_attention_masks=, model_options=",
        mentions="transformer operations custom_operations",
    ),
    Name(
        "comfy.sd1_clip.ClipTokenWeightEncoder.encode_token_weights",
        TEXT,
        parameters="token_weight_pairs",
        mentions="encode attention_mask special_tokens",
    ),
    Name(
        "comfy.text_encoders.llama.Gemma3_12B.__init__",
        TEXT,
        parameters="config_dict dtype device operations",
        sets="num_layers model multi_modal_projector vision_model dtype image_size",
    ),
    Name("comfy.text_encoders.llama.Gemma3_12B.preprocess_embed", TEXT, parameters="embed device"),
    Name(
        "comfy.text_encoders.llama.Gemma3_12B_Config",
        TEXT,
        call="vocab_size=, hidden_size=, intermediate_size=, num_hidden_layers=, num_attention_heads=, "
        "num_key_value_heads=",
        mentions="head_dim vision_config",
    ),
    Name("comfy.text_encoders.llama.Llama2_", TEXT, call="config, device=, dtype=, ops="),
    Name("comfy.text_encoders.llama.Gemma3MultiModalProjector", TEXT, call="config, dtype, device, operations"),
    Name("comfy.clip_model.CLIPVision", TEXT, call="config_dict, dtype, device, operations"),
)

# comfy_kitchen's quantized tensors, which hlwq_core's packed weights are.
QUANTIZED_TENSORS = (
    Name(
        "comfy_kitchen.tensor.base.QuantizedTensor",
        BOTH_LOADERS,
        call="qdata, layout_cls, params",
        mentions="_qdata _params _layout_cls _copy_with __tensor_flatten__ __tensor_unflatten__ __torch_dispatch__ "
        "dequantize nbytes",
    ),
    Name("comfy_kitchen.tensor.base.QuantizedTensor._copy_with", BOTH_LOADERS, parameters="qdata params clone_params"),
    Name(
        "comfy_kitchen.tensor.base.QuantizedTensor.__tensor_unflatten__",
        BOTH_LOADERS,
        parameters="inner_tensors ctx outer_size outer_stride",
    ),
    Name(
        "comfy_kitchen.tensor.base.QuantizedTensor.__torch_dispatch__",
        BOTH_LOADERS,
        parameters="func types args kwargs",
    ),
    Name(
        "comfy_kitchen.tensor.base.QuantizedLayout",
        BOTH_LOADERS,
        mentions="quantize dequantize get_plain_tensors state_dict_tensors",
    ),
    Name("comfy_kitchen.tensor.base.QuantizedLayout.quantize", BOTH_LOADERS, parameters="tensor kwargs"),
    Name("comfy_kitchen.tensor.base.QuantizedLayout.dequantize", BOTH_LOADERS, parameters="qdata params"),
    Name("comfy_kitchen.tensor.base.QuantizedLayout.get_plain_tensors", BOTH_LOADERS, parameters="qtensor"),
    Name("comfy_kitchen.tensor.base.QuantizedLayout.state_dict_tensors", BOTH_LOADERS, parameters="qdata params"),
    Name(
        "comfy_kitchen.tensor.base.BaseLayoutParams",
        BOTH_LOADERS,
        call="scale, orig_dtype, orig_shape",
        mentions="_tensor_fields clone",
    ),
    Name("comfy_kitchen.tensor.base.BaseLayoutParams.copy_from", BOTH_LOADERS, parameters="src non_blocking"),
    Name("comfy_kitchen.tensor.base.register_layout_class", BOTH_LOADERS, call="name, cls"),
    Name("comfy_kitchen.tensor.base.LAYOUTS", BOTH_LOADERS),
)

TABLE = (
    *OPERATIONS,
    *DYNAMIC_VRAM,
    *PATCHERS,
    *AROUND_SAMPLING,
    *PATCHES,
    *MODELS,
    *DECODER,
    *SAMPLING,
    *SEVERAL_GPUS,
    *TEXT_ENCODER,
    *QUANTIZED_TENSORS,
)
