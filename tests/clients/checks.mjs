/** Checks that fail loudly and are counted, and the packages of a folder, for the programs beside this file. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

let count = 0;

export function check(what, right) {
  count++;
  if (!right) {
    console.error(`failed: ${what}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}

/** Checks that a call fails with an error of this class. */
export async function refused(what, kind, call) {
  try {
    await call();
  } catch (error) {
    check(`${what} is refused: ${error.message}`, error instanceof kind);
    return;
  }
  check(`${what} is refused`, false);
}

/** A package that was installed in the folder, and its version. */
export async function load(folder, name) {
  const require = createRequire(join(folder, 'package.json'));
  const { version } = JSON.parse(readFileSync(join(folder, 'node_modules', name, 'package.json'), 'utf8'));
  return { module: await import(pathToFileURL(require.resolve(name))), version };
}

export function summary(name, version) {
  console.log(`${count} checks passed with ${name} ${version} for JavaScript`);
}
