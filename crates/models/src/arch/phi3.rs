//! Phi-3 and Phi-3.5 mini (Abdin et al., 2024): LLaMA's layers with one fused projection for queries, keys and values
//! and one for gate and up, a sliding window, rotary positions on part of each head, and LongRoPE.

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
pub struct Phi3 {
    sizes: Sizes,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Phi3 {
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
        let window = config.optional_size("sliding_window")?;
        let rotary = crate::layers::rotary_table(config, &sizes, options, loader)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let embed_tokens = Embedding::load(loader, "model.embed_tokens", &sizes, 1.0).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load(loader, &name("input_layernorm"), d, eps).await?,
                self_attn: attention(&sizes, options, &rotary, loader, &name("self_attn."), window).await?,
                post_attention_layernorm: RmsNorm::load(loader, &name("post_attention_layernorm"), d, eps).await?,
                mlp: mlp(&sizes, activation, loader, &name("mlp.")).await?,
            });
        }
        let norm = RmsNorm::load(loader, "model.norm", d, eps).await?;
        let lm_head = crate::layers::lm_head(&sizes, &embed_tokens, loader).await?;
        Ok(Box::new(Phi3 { sizes, embed_tokens, layers, norm, lm_head }))
    }
}

async fn mlp(
    sizes: &Sizes,
    activation: ops::Activation,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<GatedMlp, ModelError> {
    let (d, f) = (sizes.hidden_size, sizes.intermediate_size);
    Ok(GatedMlp {
        gate_up_proj: Linear::load(loader, prefix, &[("gate_up_proj", 2 * f)], d, false).await?,
        down_proj: Linear::load(loader, prefix, &[("down_proj", d)], f, false).await?,
        activation,
    })
}

async fn attention(
    sizes: &Sizes,
    options: &LoadOptions,
    rotary: &crate::layers::RotaryTable,
    loader: &mut Loader<'_>,
    prefix: &str,
    window: Option<usize>,
) -> Result<Attention, ModelError> {
    let (d, head_dim) = (sizes.hidden_size, sizes.head_dim);
    let (q, kv) = (sizes.num_attention_heads * head_dim, sizes.num_key_value_heads * head_dim);
    Ok(Attention {
        qkv_proj: Linear::load(loader, prefix, &[("qkv_proj", q + 2 * kv)], d, false).await?,
        o_proj: Linear::load(loader, prefix, &[("o_proj", d)], q, false).await?,
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

impl Decoder for Phi3 {
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
