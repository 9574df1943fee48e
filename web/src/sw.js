/**
 * The page without a network: its own files are cached at the first visit, those that it loads on demand at their first
 * use. The engine comes from the network, because
 * it may be newer, and from the cache where there is no network. Models are not cached here: the worker stores them
 * itself, verified and resumable. Requests to other sites are not handled.
 */
const VERSION = __VERSION__;
const FILES = __FILES__;
/** Files that are not part of the build; the last one exists only where a model is included. */
const ENGINE = ['engine/bayan.js', 'engine/bayan_bg.wasm', 'model/manifest.json'];
const CACHE = `bayan-${VERSION}`;
const ENGINE_CACHE = 'bayan-engine';

self.addEventListener('install', (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(CACHE);
      await cache.addAll(FILES.map((url) => new Request(url, { cache: 'reload' })));
      const engine = await caches.open(ENGINE_CACHE);
      await Promise.all(ENGINE.map((url) => engine.add(new Request(url, { cache: 'reload' })).catch(() => {})));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys())
        if (name.startsWith('bayan-') && name !== CACHE && name !== ENGINE_CACHE) await caches.delete(name);
      await self.clients.claim();
    })(),
  );
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  if (request.method !== 'GET' || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return;
  const path = url.pathname.slice(scope.pathname.length);
  if (path.startsWith('model/') && path !== 'model/manifest.json') return;
  if (request.headers.has('range')) return;
  if (path.startsWith('engine/') || path === 'model/manifest.json') event.respondWith(networkFirst(event));
  else event.respondWith(cacheFirst(request));
});

async function cacheFirst(request) {
  const cache = await caches.open(CACHE);
  const found = await cache.match(request.mode === 'navigate' ? './' : request, { ignoreSearch: true });
  if (found) return found;
  const response = await fetch(request);
  // Parts that are loaded on demand; their names change with their content.
  if (response.ok && new URL(request.url).pathname.includes('/assets/'))
    await cache.put(request, response.clone()).catch(() => {});
  return response;
}

async function networkFirst(event) {
  const { request } = event;
  const cache = await caches.open(ENGINE_CACHE);
  let response;
  try {
    response = await fetch(request);
  } catch {
    return (await cache.match(request)) ?? Response.error();
  }
  // Where the storage is full, the page works but is not cached.
  if (response.ok) event.waitUntil(cache.put(request, response.clone()).catch(() => {}));
  return response;
}
