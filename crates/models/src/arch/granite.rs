//! Granite 3 (IBM, 2024): LLaMA's layers with four multipliers.
//!
//! The multipliers cost nothing here. That of the scores is attention's scale, and that of the logits is merged into
//! the final norm's weights. Granite multiplies each sub-layer's result by `m` before adding it to the residual stream;
//! this file divides the residual stream by `m` instead. A norm cancels that division if its epsilon is divided by m².

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, Tensor};

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
pub struct Granite {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

/// The multipliers.
#[derive(Debug)]
struct Multipliers {
    /// Multiplies the embeddings.
    embedding: f64,
    /// Multiplies q·k, in place of 1 / √d.
    attention: f64,
    /// Multiplies each sub-layer's result.
    residual: f64,
    /// Divides the logits.
    logits: f64,
}

impl Multipliers {
    fn read(config: &Fields<'_>) -> Result<Multipliers, ModelError> {
        let positive = |field: &str| {
            let value = config.number(field, 1.0)?;
            if value > 0.0 { Ok(value) } else { config.refuse(field, "a positive number") }
        };
        Ok(Multipliers {
            embedding: positive("embedding_multiplier")?,
            attention: positive("attention_multiplier")?,
            residual: positive("residual_multiplier")?,
            logits: positive("logits_scaling")?,
        })
    }
}

impl Granite {
    /// Loads the weights.
    ///
    /// # Errors
    /// A configuration or tensor that does not fit.
    pub async fn load(
        config: &Fields<'_>,
        options: &LoadOptions,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Decoder>, ModelError> {
        let sizes = Sizes::read(config, false)?;
        let activation = crate::config::activation(config)?;
        let attention_bias = config.flag("attention_bias", false)?;
        let mlp_bias = config.flag("mlp_bias", false)?;
        let multipliers = Multipliers::read(config)?;
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, residual) = (sizes.hidden_size, multipliers.residual);
        let eps = (f64::from(sizes.rms_norm_eps) / (residual * residual)) as f32;
        let scale = (multipliers.embedding / residual) as f32;
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, scale).await?;
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
                    multipliers.attention as f32,
                )
                .await?,
                post_attention_layernorm: RmsNorm::load(loader, &name("post_attention_layernorm"), d, eps).await?,
                mlp: GatedMlp::load(loader, &name("mlp."), &sizes, activation, mlp_bias).await?,
            });
        }
        let scale = (1.0 / multipliers.logits) as f32;
        let norm = RmsNorm { weight: loader.scaled_vector("model.norm.weight", &[d], scale).await?, eps };
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Granite { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

async fn attention(
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
    bias: bool,
    scale: f32,
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
            rotary_dim: rotary.dim,
            ..Default::default()
        },
        attention: ops::Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim,
            scale,
            window: None,
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

impl Decoder for Granite {
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
