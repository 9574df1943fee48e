import { checkDevice, chooseDevice } from '../state/panels';
import { runningLabel, sessionInfo } from '../state/session';
import { baseDirection, formats, set, strings } from '../state/store';
import { Sheet } from './Dialogs';
import { Line } from './Directed';
import { Choice } from './fields';
import { useApp } from './hooks';
import { Icon } from './icons';

function Row({ name, value, good }: { name: string; value: string; good?: boolean | undefined }) {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>
        {good !== undefined && (
          <span class={good ? 'tick' : 'cross'}>
            <Icon name={good ? 'check' : 'close'} size={16} />
          </span>
        )}
        <bdi>{value}</bdi>
      </dd>
    </div>
  );
}

export function DevicePanel() {
  const { probe, settings } = useApp();
  const t = strings();
  const f = formats();
  const info = sessionInfo();
  const yes = (value: boolean) => (value ? t.available : t.unavailable);
  return (
    <Sheet title={t.device} onClose={() => set({ panel: null })}>
      {probe?.webgpu === false && <NoGpu />}
      {probe?.webgpu && (
        <section class="block">
          <Choice
            name="device"
            label={t.computeOn}
            value={settings.device}
            options={t.computers}
            onChange={chooseDevice}
          />
          <p class="dim small-text">{t.computeOnNote}</p>
        </section>
      )}
      {probe?.webgpu && (
        <dl class="facts">
          <Row name="WebGPU" value={yes(probe.webgpu)} good={probe.webgpu} />
          <Row
            name={t.deviceGpu}
            value={[probe.vendor, probe.architecture, probe.description].filter(Boolean).join(' · ') || t.deviceUnknown}
          />
          <Row name={t.capF16} value={yes(probe.shaderF16)} good={probe.shaderF16} />
          <Row name={t.capSubgroups} value={yes(probe.subgroups)} good={probe.subgroups} />
          <Row name={t.capDot} value={yes(probe.packedDot)} good={probe.packedDot} />
          <Row name={t.capBuffer} value={f.bytes(probe.maxBufferBytes)} />
          <Row name={t.capBinding} value={f.bytes(probe.maxBindingBytes)} />
        </dl>
      )}
      {probe?.webgpu && (!probe.shaderF16 || !probe.subgroups || !probe.packedDot || probe.fallback) && (
        <section class="block">
          <h3>{t.deviceMissing}</h3>
          <ul class="plain">
            {probe.fallback && <li>{t.deviceSoftware}</li>}
            {!probe.shaderF16 && <li>{t.capF16Missing}</li>}
            {!probe.subgroups && <li>{t.capSubgroupsMissing}</li>}
            {!probe.packedDot && <li>{t.capDotMissing}</li>}
          </ul>
        </section>
      )}
      {info && (
        <>
          <section class="block">
            <h3>{t.modelInfo}</h3>
            <dl class="facts">
              <Row name={t.modelInfo} value={`${runningLabel()} · ${info.model.architecture}`} />
              <Row name={t.parameters} value={f.number(info.model.parameters)} />
              <Row name={t.format} value={info.model.format} />
              <Row name={t.weightsOnGpu} value={f.bytes(info.model.weightBytes)} />
              <Row name={t.contextLength} value={f.number(info.model.contextLength)} />
            </dl>
          </section>
          <section class="block">
            <h3>{t.devicePath}</h3>
            <dl class="facts mono">
              {Object.entries(info.device.paths).map(([name, value]) => (
                <Row key={name} name={name} value={value} />
              ))}
            </dl>
            {info.device.paths['threads'] === '1' && (
              <ul class="plain">
                <li>{t.oneThread[whyOneThread()]}</li>
              </ul>
            )}
            {info.device.missing.length > 0 && (
              <details>
                <summary>{t.details}</summary>
                <ul class="plain" dir="ltr" lang="en">
                  {info.device.missing.map((line) => (
                    <li key={line}>{line}</li>
                  ))}
                </ul>
              </details>
            )}
          </section>
        </>
      )}
      <div class="actions">
        <button type="button" class="button" onClick={() => void checkDevice()}>
          {t.tryAgain}
        </button>
      </div>
    </Sheet>
  );
}

function whyOneThread(): 'headers' | 'cores' | 'failed' {
  if (!crossOriginIsolated) return 'headers';
  return navigator.hardwareConcurrency > 1 ? 'failed' : 'cores';
}

/** What can be done about a missing WebGPU. */
function NoGpu() {
  const { probe } = useApp();
  const t = strings();
  return (
    <section class="block no-gpu">
      <h3>{t.noGpuTitle}</h3>
      <p>{t.noGpuText}</p>
      {probe?.missing === 'insecure' && <p class="callout">{t.noGpuInsecure}</p>}
      {probe?.missing === 'adapter' && <p class="callout">{t.noGpuAdapter}</p>}
      <ul class="browsers">
        {t.noGpuSteps.map((step) => (
          <li key={step.browser}>
            <h4>
              <Line text={step.browser} direction={baseDirection()} />
            </h4>
            <p>{step.text}</p>
          </li>
        ))}
      </ul>
    </section>
  );
}
