//! SmolLM3 (Hugging Face, 2025): LLaMA's layers. Every fourth layer has no rotary positions, and if
//! `use_sliding_window` is true, a window instead.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, Tensor};
use serde_json::{Value, json};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, GatedMlp, Linear, RmsNorm};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

/// The model.
#[derive(Debug)]
pub struct SmolLm3 {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl SmolLm3 {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let sizes = Sizes::read(config, true)?;
        let activation = crate::config::activation(config)?;
        let attention_bias = config.flag("attention_bias", false)?;
        let mlp_bias = config.flag("mlp_bias", false)?;
        let rotates = rotates(config, &sizes)?;
        let windows = windows(config, &rotates)?;
        let rotary = crate::layers::rotary_table(&Fields(&with_base(config)), &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, 1.0).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load(loader, &name("input_layernorm"), d, eps).await?,
                self_attn: attention(
                    &sizes,
                    options,
                    &rotary,
                    loader,
                    &name("self_attn."),
                    attention_bias,
                    rotates[index],
                    windows[index],
                )
                .await?,
                post_attention_layernorm: RmsNorm::load(loader, &name("post_attention_layernorm"), d, eps).await?,
                mlp: GatedMlp::load(loader, &name("mlp."), &sizes, activation, mlp_bias).await?,
            });
        }
        let norm = RmsNorm::load(loader, "model.norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(SmolLm3 { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

/// Whether each layer has rotary positions: given by the list `no_rope_layers`, in which 1 means that it has; without
/// the list, all layers except every n-th.
fn rotates(config: &Fields<'_>, sizes: &Sizes) -> Result<Vec<bool>, ModelError> {
    let layers = sizes.num_hidden_layers;
    let Some(list) = config.get("no_rope_layers") else {
        let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
    };
    let flag = |value: &Value| value.as_u64().filter(|flag| *flag < 2).map(|flag| flag == 1);
    let flags: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().take(layers).map(flag).collect());
    match flags.filter(|flags| flags.len() == layers) {
        Some(flags) => Ok(flags),
        None => config.refuse("no_rope_layers", &format!("a list of 0 or 1 for each of the {layers} layers")),
    }
}

/// The window of each layer: only if `use_sliding_window` is true, on the layers that `layer_types` lists, or on those
/// without rotary positions.
fn windows(config: &Fields<'_>, rotates: &[bool]) -> Result<Vec<Option<usize>>, ModelError> {
    let window = if config.flag("use_sliding_window", false)? { config.optional_size("sliding_window")? } else { None };
    let types = config.get("layer_types").and_then(|types| types.as_array());
    let sliding = |layer: usize| match types.and_then(|types| types.get(layer)).and_then(|kind| kind.as_str()) {
        Some(kind) => kind == "sliding_attention",
        None => !rotates[layer],
    };
    Ok((0..rotates.len()).map(|layer| window.filter(|_| sliding(layer))).collect())
}

/// The configuration, with the architecture's default rotary base if it has none.
fn with_base(config: &Fields<'_>) -> Value {
    let mut fields = config.0.clone();
    if config.get("rope_theta").is_none()
        && let Some(fields) = fields.as_object_mut()
    {
        fields.insert("rope_theta".to_owned(), json!(2e6));
    }
    fields
}

async fn attention(
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
    bias: bool,
    rotates: bool,
    window: Option<usize>,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d, bias).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, bias).await?,
        rotary: rotary.state.clone(),
        qk_norm: None,
        rope: ops::Rope {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            rotary_dim: if rotates { rotary.dim } else { 0 },
            ..Default::default()
        },
        attention: ops::Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
            context: options.context,
            ..Default::default()
        },
    })
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.input_layernorm.forward(graph, x);
        let y = self.self_attn.forward(graph, y, inputs.causality, cache);
        let x = graph.add(x, y);
        let y = self.post_attention_layernorm.forward(graph, x);
        let y = self.mlp.forward(graph, y);
        graph.add(x, y)
    }
}

impl Decoder for SmolLm3 {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        self.layers.iter().map(|layer| layer.self_attn.cache_spec()).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.embed_tokens.forward(graph, inputs.tokens); // [T, D]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.norm.forward(graph, x);
        self.lm_head.forward(graph, x) // [R, V]
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.self_attn.qkv_proj, &layer.self_attn.o_proj, &layer.mlp.gate_up_proj, &layer.mlp.down_proj]
                .map(|linear| &linear.weight)
        });
        [&self.embed_tokens.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut();
        let linears = layers.flat_map(|layer| {
            [
                &mut layer.self_attn.qkv_proj,
                &mut layer.self_attn.o_proj,
                &mut layer.mlp.gate_up_proj,
                &mut layer.mlp.down_proj,
            ]
        });
        linears.chain([&mut self.lm_head]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(layers: usize) -> Sizes {
        let config = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
            "num_attention_heads": 4, "vocab_size": 10});
        Sizes::read(&Fields(&config), true).unwrap()
    }

    #[test]
    fn layers_without_positions_by_list_or_interval() {
        let of = |config: Value| rotates(&Fields(&config), &sizes(4));
        assert_eq!(of(json!({})).unwrap(), [true, true, true, false]);
        assert_eq!(of(json!({"no_rope_layer_interval": 2})).unwrap(), [true, false, true, false]);
        assert_eq!(of(json!({"no_rope_layers": [0, 1, 1, 0, 1]})).unwrap(), [false, true, true, false]);
        for wrong in [json!([1, 1]), json!([1, 2, 1, 1]), json!("all")] {
            assert!(of(json!({"no_rope_layers": wrong})).unwrap_err().to_string().contains("no_rope_layers"));
        }
    }

    #[test]
    fn windows_are_on_layers_without_positions() {
        let rotates = [true, false];
        let of = |config: Value| windows(&Fields(&config), &rotates).unwrap();
        assert_eq!(of(json!({"sliding_window": 8})), [None, None]);
        assert_eq!(of(json!({"sliding_window": 8, "use_sliding_window": true})), [None, Some(8)]);
        let types = json!(["sliding_attention", "full_attention"]);
        let config = json!({"sliding_window": 8, "use_sliding_window": true, "layer_types": types});
        assert_eq!(of(config), [Some(8), None]);
    }
}
