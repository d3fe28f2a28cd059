// Made by `python3 -m tests.support.tables` from `offload_core/settings`: change it there.
/** The components that our nodes bring, in the order of their outputs, by node id. */
export const NODES = {
  LayerwiseOffloadDiffusionModelLoader: [{ kind: 'dit', placement: 'placement' }],
  LayerwiseOffloadCLIPLoader: [{ kind: 'text_encoder', placement: 'placement' }],
  LayerwiseOffloadVAELoader: [{ kind: 'vae', placement: 'placement' }],
  LayerwiseOffloadCLIPVisionLoader: [{ kind: 'image_encoder', placement: 'placement' }],
  LayerwiseOffloadControlNetLoader: [{ kind: 'controlnet', placement: 'placement' }],
  LayerwiseOffloadCheckpointLoader: [{ kind: 'dit', placement: 'placement' }, { kind: 'text_encoder', placement: 'clip_placement' }, { kind: 'vae', placement: 'vae_placement' }],
  LayerwiseOffloadLoader: [{ kind: 'dit', placement: 'dit_placement' }, { kind: 'text_encoder', placement: 'clip_placement' }, { kind: 'vae', placement: 'vae_placement' }, { kind: 'image_encoder', placement: 'clip_vision_placement', needs: 'clip_vision_name' }],
  LayerwiseOffloadApply: [{ kind: 'dit', placement: 'placement', needs: 'model' }, { kind: 'text_encoder', placement: 'clip_placement', needs: 'clip' }, { kind: 'vae', placement: 'vae_placement', needs: 'vae' }, { kind: 'image_encoder', placement: 'clip_vision_placement', needs: 'clip_vision' }, { kind: 'controlnet', placement: 'control_net_placement', needs: 'control_net' }],
};
/** The loader of a whole pipeline. */
export const LOADER = 'LayerwiseOffloadLoader';
/** The node that takes over what other nodes have loaded. */
export const APPLY = 'LayerwiseOffloadApply';
/** The node whose widgets speak of other nodes' components. */
export const OPTIONS = 'LayerwiseOffloadOptions';
/** The app's loaders that an Apply node may stand behind. */
export const APP_LOADERS = ['UNETLoader', 'CLIPLoader', 'DualCLIPLoader', 'TripleCLIPLoader', 'QuadrupleCLIPLoader', 'VAELoader', 'CLIPVisionLoader', 'ControlNetLoader', 'CheckpointLoaderSimple'];
/** Kinds known only from a file, and what their loader declares. */
export const DECLARED_AS = { audio_vae: 'vae' };
/** The components that options can speak of as one. */
export const GROUPS = ['dit', 'text_encoder', 'image_encoder', 'vae'];
/** The kinds that can be placed on the CPU. */
export const COMPUTED_ON_CPU = ['text_encoder', 'vae'];
/** The settings of graph options that are words. */
export const CHOICES = ['placement', 'host_tier', 'lora_mode'];
/** The settings of graph options that are numbers of GB. */
export const SIZES = ['budget_gb', 'ring_gb', 'pin_budget_gb'];
export const MODES = ['auto', 'memory', 'speed', 'manual'];
export const PLACEMENTS = ['auto', 'layerwise', 'resident', 'whole', 'cpu'];
export const HOST_TIERS = ['auto', 'pinned', 'pageable', 'mapped'];
