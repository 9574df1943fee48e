/** An adapter as one file, to be shared: a zip archive of PEFT's two files. */
import type { SourceFile } from 'bayan-web';

const PARTS = /(?:^|\/)(adapter_config\.json|adapter_model\.safetensors)$/;
const ARCHIVE = /\.zip$/i;
/** An archive may unpack to far more than its size. */
const MOST_BYTES = 2e9;

/** Whether the files, unpacked, are an adapter and no model. */
export const isAdapter = (files: SourceFile[]): boolean => files.some(({ path }) => path === 'adapter_config.json');

export async function packAdapter(files: SourceFile[]): Promise<Blob> {
  const { zipSync } = await import('fflate');
  const entries = files.map(async ({ path, file }) => [path, new Uint8Array(await file.arrayBuffer())] as const);
  // Weights do not get smaller.
  return new Blob([zipSync(Object.fromEntries(await Promise.all(entries)), { level: 0 })], { type: 'application/zip' });
}

/** The two files of an archive; all other files, and a damaged archive or one of something else, as they are. */
export async function unpackAdapter(files: SourceFile[]): Promise<SourceFile[]> {
  const [one] = files;
  if (files.length !== 1 || !one || !ARCHIVE.test(one.path)) return files;
  const { unzipSync } = await import('fflate');
  const bytes = new Uint8Array(await one.file.arrayBuffer());
  const filter = ({ name, originalSize }: { name: string; originalSize: number }) =>
    PARTS.test(name) && originalSize <= MOST_BYTES;
  try {
    const found = Object.entries(unzipSync(bytes, { filter }));
    return found.length > 0
      ? found.map(([name, part]) => ({ path: PARTS.exec(name)![1]!, file: new Blob([part]) }))
      : files;
  } catch {
    // Whoever reads the files says what is wrong with them.
    return files;
  }
}
