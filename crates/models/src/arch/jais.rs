//! Jais (Sengupta et al., 2023), also the Jais family: GPT-2's layout with ALiBi instead of learned positions, SwiGLU,
//! and the scales of maximal-update parametrisation.
//!
//! Matrices are stored [in, out] and transposed while they are loaded. `c_fc2` is the gate. `n_inner` need not be a
//! multiple of 32, because rows are padded.

use std::sync::Arc;

use bayan_tensor::ops;
use bayan_tensor::{Graph, Matrix, State, Tensor};

use crate::cache::{Cache, LayerCache, LayerCacheSpec};
use crate::config::{Fields, Sizes};
use crate::decoder::{Decoder, StepInputs};
use crate::layers::{Attention, Embedding, GatedMlp, LayerNorm, Linear};
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

#[derive(Debug)]
struct Layer {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: GatedMlp,
}

/// The model.
#[derive(Debug)]
pub struct Jais {
    sizes: Sizes,
    wte: Embedding,
    layers: Vec<Layer>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

/// The scales, under the field names of early or of later checkpoints.
#[derive(Debug, PartialEq)]
struct Scales {
    /// Multiplies the embeddings.
    embeddings: f64,
    /// Multiplies the logits.
    logits: f64,
    /// Multiplies q·k.
    scores: f64,
    /// Multiplies ALiBi's slopes.
    slopes: f64,
}

impl Scales {
    fn read(config: &Fields<'_>, head_dim: usize, context: usize) -> Result<Scales, ModelError> {
        let first =
            |names: [&str; 2]| config.number(if config.get(names[0]).is_some() { names[0] } else { names[1] }, 1.0);
        let logits = match config.get("width_scale") {
            Some(_) => config.number("width_scale", 1.0)?,
            None => config.number("mup_output_alpha", 1.0)? * config.number("mup_width_scale", 1.0)?,
        };
        let by_d = config.flag("scale_qk_dot_by_d", false)? || config.flag("mup_scale_qk_dot_by_d", false)?;
        let scores = if by_d { 1.0 / head_dim as f64 } else { 1.0 / (head_dim as f64).sqrt() };
        Ok(Scales {
            embeddings: first(["embeddings_scale", "mup_embeddings_scale"])?,
            logits,
            scores,
            slopes: slopes(config, context)?,
        })
    }
}

/// Factor on ALiBi's slopes. `alibi_scaling` divides the slopes for contexts longer than those of training: by a given
/// factor, or by the ratio of the context to `train_seq_len`.
fn slopes(config: &Fields<'_>, context: usize) -> Result<f64, ModelError> {
    let Some(value) = config.get("alibi_scaling") else { return Ok(1.0) };
    let scaling = Fields(value);
    let divisor = match scaling.get("factor") {
        Some(_) => scaling.number("factor", 1.0)?,
        None => (context as f64 / scaling.size("train_seq_len")? as f64).max(1.0),
    };
    if scaling.text("type").unwrap_or("linear") != "linear" || divisor <= 0.0 {
        return config.refuse("alibi_scaling", "the type linear, with a positive factor or train_seq_len");
    }
    Ok(1.0 / divisor)
}

impl Jais {
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
        if config.text("position_embedding_type").unwrap_or("learned") != "alibi" {
            return config.refuse("position_embedding_type", "alibi");
        }
        if config.text("activation_function").unwrap_or("gelu") != "swiglu" {
            return config.refuse("activation_function", "swiglu");
        }
        let scales = Scales::read(config, sizes.head_dim, options.context)?;
        let (d, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let nothing = loader.computed("no rotary table", &[1, 4], || vec![0.0; 4])?;
        let wte = Embedding::load(loader, "transformer.wte", &sizes, scales.embeddings as f32).await?;
        let mut layers = Vec::with_capacity(sizes.num_hidden_layers);
        for index in 0..sizes.num_hidden_layers {
            let name = |part: &str| format!("transformer.h.{index}.{part}");
            layers.push(Layer {
                ln_1: LayerNorm::load(loader, &name("ln_1"), d, eps, true, 1.0).await?,
                attn: attention(&sizes, options, &scales, &nothing, loader, &name("attn.")).await?,
                ln_2: LayerNorm::load(loader, &name("ln_2"), d, eps, true, 1.0).await?,
                mlp: mlp(&sizes, loader, &name("mlp.")).await?,
            });
        }
        // The head has no bias, so that the norm's weights can include the scale of the logits.
        let ln_f = LayerNorm::load(loader, "transformer.ln_f", d, eps, true, scales.logits as f32).await?;
        let lm_head = crate::layers::lm_head(&sizes, &wte, loader).await?;
        Ok(Box::new(Jais { sizes, wte, layers, ln_f, lm_head }))
    }
}

async fn mlp(sizes: &Sizes, loader: &mut Loader<'_>, prefix: &str) -> Result<GatedMlp, ModelError> {
    let (d, f) = (sizes.hidden_size, sizes.intermediate_size);
    Ok(GatedMlp {
        gate_up_proj: Linear::load_transposed(loader, prefix, &[("c_fc2", f), ("c_fc", f)], d).await?,
        down_proj: Linear::load_transposed(loader, prefix, &[("c_proj", d)], f).await?,
        activation: ops::Activation::Silu,
    })
}

async fn attention(
    sizes: &Sizes,
    options: &LoadOptions,
    scales: &Scales,
    nothing: &Arc<State>,
    loader: &mut Loader<'_>,
    prefix: &str,
) -> Result<Attention, ModelError> {
    let (d, head_dim, heads) = (sizes.hidden_size, sizes.head_dim, sizes.num_attention_heads);
    Ok(Attention {
        qkv_proj: Linear::load_transposed(loader, prefix, &[("c_attn", 3 * heads * head_dim)], d).await?,
        o_proj: Linear::load_transposed(loader, prefix, &[("c_proj", d)], heads * head_dim).await?,
        rotary: nothing.clone(),
        qk_norm: None,
        rope: ops::Rope { heads, kv_heads: heads, head_dim, rotary_dim: 0, ..Default::default() },
        attention: ops::Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale: scales.scores as f32,
            context: options.context,
            alibi: Some(scales.slopes as f32),
            ..Default::default()
        },
    })
}

impl Layer {
    fn forward(&self, graph: &mut Graph, x: Tensor, inputs: StepInputs, cache: &LayerCache) -> Tensor {
        let y = self.ln_1.forward(graph, x);
        let y = self.attn.forward(graph, y, inputs.causality, cache);
        let x = graph.add(x, y);
        let y = self.ln_2.forward(graph, x);
        let y = self.mlp.forward(graph, y);
        graph.add(x, y)
    }
}

impl Decoder for Jais {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn cache_specs(&self) -> Vec<LayerCacheSpec> {
        self.layers.iter().map(|layer| layer.attn.cache_spec()).collect()
    }

    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor {
        let mut x = self.wte.forward(graph, inputs.tokens); // [T, D]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(graph, x, inputs, cache);
        }
        let x = graph.choose_rows(x, inputs.rows); // [R, D]
        let x = self.ln_f.forward(graph, x);
        self.lm_head.forward(graph, x) // [R, V]
    }

    fn matrices(&self) -> Vec<&Arc<Matrix>> {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.attn.qkv_proj, &layer.attn.o_proj, &layer.mlp.gate_up_proj, &layer.mlp.down_proj].map(|l| &l.weight)
        });
        [&self.wte.weight, &self.lm_head.weight].into_iter().chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let layers = self.layers.iter_mut();
        let linears = layers.flat_map(|layer| {
            [&mut layer.attn.qkv_proj, &mut layer.attn.o_proj, &mut layer.mlp.gate_up_proj, &mut layer.mlp.down_proj]
        });
        linears.chain([&mut self.lm_head]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_notations_of_the_scales_agree() {
        let old = json!({"embeddings_scale": 14.6, "width_scale": 0.111, "scale_qk_dot_by_d": true});
        let new = json!({"mup_embeddings_scale": 14.6, "mup_output_alpha": 2.22, "mup_width_scale": 0.05, "mup_scale_qk_dot_by_d": true});
        let [old, new] = [old, new].map(|config| Scales::read(&Fields(&config), 128, 2048).unwrap());
        assert!((old.logits - new.logits).abs() < 1e-12);
        assert_eq!((old.embeddings, old.scores, old.slopes), (new.embeddings, 1.0 / 128.0, 1.0));
    }

    #[test]
    fn slopes_flatten_by_a_factor_or_by_the_context() {
        let scale = |scaling: serde_json::Value| slopes(&Fields(&json!({ "alibi_scaling": scaling })), 4096);
        assert_eq!(scale(json!({"type": "linear", "factor": 8})).unwrap(), 0.125);
        assert_eq!(scale(json!({"type": "linear", "train_seq_len": 2048})).unwrap(), 0.5);
        assert_eq!(scale(json!({"type": "linear", "train_seq_len": 8192})).unwrap(), 1.0);
        assert!(scale(json!({"type": "cubic", "factor": 2})).is_err());
    }
}
