fn mapped(x: f32) -> f32 { return ${FACTOR} * x + ${PLUS}; }

