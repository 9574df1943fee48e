/** After tsc: adds `.js` to the relative imports of the declarations, which `moduleResolution: node16` demands. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const dist = fileURLToPath(new URL('dist/', import.meta.url));
const names = readdirSync(dist, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.d.ts'));
if (names.length === 0) throw new Error(`${dist} holds no declarations: run tsc first (npm run build:package)`);
for (const name of names) {
  const text = readFileSync(dist + name, 'utf8');
  writeFileSync(dist + name, text.replace(/(from\s+|import\()(['"])(\.{1,2}\/[^'"]+?)(?:\.js)?\2/g, '$1$2$3.js$2'));
}
