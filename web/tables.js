// Made by `python3 -m tests.support.tables` from `offload_core/settings`: change it there.
export const NODES = {
  LayerwiseOffloadDiffusionModelLoader: [{ kind: 'dit', placement: 'placement' }],
  LayerwiseOffloadCLIPLoader: [{ kind: 'text_encoder', placement: 'placement' }],
  LayerwiseOffloadVAELoader: [{ kind: 'vae', placement: 'placement' }],
  LayerwiseOffloadCLIPVisionLoader: [{ kind: 'image_encoder', placement: 'placement' }],
  LayerwiseOffloadControlNetLoader: [{ kind: 'controlnet', placement: 'placement' }],
  LayerwiseOffloadCheckpointLoader: [{ kind: 'dit', placement: 'placement' }, { kind: 'text_encoder', placement: 'clip_placement' }, { kind: 'vae', placement: 'vae_placement' }],
  LayerwiseOffloadLoader: [{ kind: 'dit', placement: 'dit_placement' }, { kind: 'text_encoder', placement: 'clip_placement' }, { kind: 'vae', placement: 'vae_placement' }, { kind: 'image_encoder', placement: 'clip_vision_placement', needs: 'clip_vision_name' }],
  LayerwiseOffloadApply: [{ kind: 'dit', placement: 'placement', needs: 'model' }, { kind: 'text_encoder', placement: 'clip_placement', needs: 'clip' }, { kind: 'vae', placement: 'vae_placement', needs: 'vae' }, { kind: 'image_encoder', placement: 'clip_vision_placement', needs: 'clip_vision' }, { kind: 'controlnet', placement: 'control_net_placement', needs: 'control_net' }, { kind: 'model_patch', placement: 'model_patch_placement', needs: 'model_patch' }, { kind: 'audio_encoder', placement: 'audio_encoder_placement', needs: 'audio_encoder' }, { kind: 'upscaler', placement: 'upscale_model_placement', needs: 'upscale_model' }, { kind: 'latent_upscaler', placement: 'latent_upscale_model_placement', needs: 'latent_upscale_model' }, { kind: 'frame_interpolator', placement: 'interp_model_placement', needs: 'interp_model' }],
};
export const LOADER = 'LayerwiseOffloadLoader';
export const APPLY = 'LayerwiseOffloadApply';
export const OPTIONS = 'LayerwiseOffloadOptions';
export const APP_LOADERS = ['UNETLoader', 'CLIPLoader', 'DualCLIPLoader', 'TripleCLIPLoader', 'QuadrupleCLIPLoader', 'VAELoader', 'CLIPVisionLoader', 'ControlNetLoader', 'CheckpointLoaderSimple'];
export const DECLARED_AS = { audio_vae: 'vae' };
export const GROUPS = ['dit', 'text_encoder', 'image_encoder', 'vae'];
export const COMPUTED_ON_CPU = ['text_encoder', 'vae'];
export const CHOICES = ['placement', 'host_tier', 'lora_mode'];
export const SIZES = ['budget_gb', 'ring_gb', 'pin_budget_gb', 'peer_budget_gb', 'workflow_budget_gb', 'workflow_host_gb'];
export const MODES = ['auto', 'memory', 'speed', 'manual'];
export const PLACEMENTS = ['auto', 'layerwise', 'resident', 'whole', 'cpu'];
export const HOST_TIERS = ['auto', 'pinned', 'pageable', 'mapped'];
