import type { ComponentChildren } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import { formats, set, strings } from '../state/store';
import { useApp } from './hooks';
import { Icon } from './icons';

/** A modal sheet on the browser's own dialog: focus stays inside and Escape closes. */
export function Sheet({
  title,
  onClose,
  children,
  narrow = false,
}: {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  narrow?: boolean;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const t = strings();
  useEffect(() => {
    const element = dialog.current!;
    if (!element.open) element.showModal();
    return () => element.close();
  }, []);
  return (
    <dialog
      ref={dialog}
      class={narrow ? 'sheet narrow' : 'sheet'}
      aria-label={title}
      onCancel={(e) => {
        e.preventDefault();
        onClose();
      }}
      onClick={(e) => {
        if (e.target === dialog.current) onClose();
      }}
    >
      <div class="sheet-in">
        <header class="sheet-head">
          <h2>{title}</h2>
          <button type="button" class="icon-button" aria-label={t.close} onClick={onClose}>
            <Icon name="close" />
          </button>
        </header>
        <div class="sheet-body">{children}</div>
      </div>
    </dialog>
  );
}

export function ConfirmDownload() {
  const state = useApp();
  const t = strings();
  const f = formats();
  const { plan, answer } = state.plan!;
  const text =
    plan.freeBytes === null ? t.confirmTextUnknown : t.confirmText.replace('{free}', f.bytes(plan.freeBytes));
  return (
    <Sheet title={t.confirmTitle} narrow onClose={() => answer(false)}>
      <p class="plan-name">
        <bdi>{plan.label}</bdi>
      </p>
      <p>{text.replace('{size}', f.bytes(plan.neededBytes))}</p>
      {plan.presentBytes > 0 && <p class="dim">{t.confirmPresent.replace('{done}', f.bytes(plan.presentBytes))}</p>}
      <div class="actions">
        <button type="button" class="button primary" onClick={() => answer(true)}>
          {t.confirmYes}
        </button>
        <button type="button" class="button" onClick={() => answer(false)}>
          {t.cancel}
        </button>
      </div>
    </Sheet>
  );
}

export function Notice() {
  const { notice } = useApp();
  const t = strings();
  useEffect(() => {
    if (!notice) return;
    const timer = setTimeout(() => set({ notice: null }), 7000);
    return () => clearTimeout(timer);
  }, [notice]);
  return (
    <div class="notice-place" role="status" aria-live="polite">
      {notice && (
        <div class="notice">
          <span>{notice.text}</span>
          {notice.action && (
            <button
              type="button"
              class="text-button"
              onClick={() => {
                notice.action!.run();
                set({ notice: null });
              }}
            >
              {notice.action.label}
            </button>
          )}
          <button type="button" class="icon-button small" aria-label={t.close} onClick={() => set({ notice: null })}>
            <Icon name="close" size={16} />
          </button>
        </div>
      )}
    </div>
  );
}
