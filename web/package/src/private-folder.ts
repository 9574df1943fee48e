/**
 * A folder of the browser's private file system, made if it is missing; null where the browser has none for this page
 * (some private windows, insecure origins).
 */
export async function privateFolder(name: string): Promise<FileSystemDirectoryHandle | null> {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle(name, { create: true });
  } catch {
    return null;
  }
}
