{{/* The names of all that belongs to a release begin with this. */}}
{{- define "triptych.name" -}}
{{- if contains "triptych" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-triptych" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "triptych.labels" -}}
app.kubernetes.io/name: triptych
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "triptych.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* "yes" where all values, named by their paths, are set. */}}
{{- define "triptych.holds" -}}
{{- $all := true }}
{{- range $path := .paths }}
{{- $found := $.values }}
{{- range splitList "." $path }}{{ $found = get $found . }}{{ end }}
{{- if not $found }}{{ $all = false }}{{ end }}
{{- end }}
{{- if $all }}yes{{ end }}
{{- end }}

{{/* The Service of the controller that is active, alone. */}}
{{- define "triptych.activeHost" -}}
{{ include "triptych.name" . }}-controller-active.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Where the controllers serve: each by its pod's name, so that callers find the active one. */}}
{{- define "triptych.controllers" -}}
{{- $name := printf "%s-controller" (include "triptych.name" .) }}
{{- $port := int (.Files.Get "flows.yaml" | fromYaml).ports.grpc.first }}
{{- $all := list }}
{{- range $number := until (int .Values.controller.replicas) }}
{{- $all = append $all (printf "%s-%d.%s.%s.svc:%d" $name $number $name $.Release.Namespace $port) }}
{{- end }}
{{- join "," $all }}
{{- end }}

{{/* Settings as flags. Numbers come as floats from values, so whole ones are written as integers. */}}
{{- define "triptych.flags" -}}
{{- range $name, $value := . }}
- --{{ $name | replace "_" "-" }}={{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}{{ else }}{{ $value }}{{ end }}
{{- end }}
{{- end }}

{{/* Seconds for a pod's end: the drain, the wait for its rooms' readers, the wait before the drain, and half a minute. */}}
{{- define "triptych.grace" -}}
{{- $seconds := 30 }}
{{- range $name := list "drain_timeout_s" "release_timeout_s" "lame_duck_s" }}{{ $seconds = add $seconds (ceil (default 0 (get $.settings $name))) }}{{ end }}
{{- $seconds }}
{{- end }}

{{/* A probe: by gRPC, or by the image's command, because kubelets can't speak TLS to a gRPC port. */}}
{{- define "triptych.probe" -}}
{{- if .root.Values.tls.enabled }}
exec:
  command: [triptych, health, --endpoint, "localhost:{{ .port }}"{{ with .service }}, --service, {{ . }}{{ end }}]
timeoutSeconds: 8
{{- else }}
grpc: {port: {{ .port }}{{ with .service }}, service: {{ . }}{{ end }}}
timeoutSeconds: 5
{{- end }}
periodSeconds: 10
failureThreshold: {{ .failures | default 3 }}
{{- end }}

{{- define "triptych.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What a mesh must know of a pod. Mooncake's ports are left alone: no Service names them, what they carry isn't HTTP,
and Istio takes no ranges. So is that of metrics, for a Prometheus outside of the mesh. A proxy stays until the worker
has drained. */}}
{{- define "triptych.meshAnnotations" -}}
{{- $all := (.root.Files.Get "flows.yaml" | fromYaml).ports }}
{{- $ports := $all.mooncake }}
{{- $each := list }}
{{- range untilStep (int $ports.first) (add1 $ports.last | int) 1 }}{{ $each = append $each (toString .) }}{{ end }}
{{- $pages := list }}
{{- if .root.Values.metrics.enabled }}{{ $pages = list (toString $all.metrics.first) }}{{ end }}
{{- if eq .root.Values.mesh.kind "istio" }}
sidecar.istio.io/inject: "true"
traffic.sidecar.istio.io/excludeInboundPorts: {{ join "," (concat $each $pages) | quote }}
traffic.sidecar.istio.io/excludeOutboundPorts: {{ join "," $each | quote }}
proxy.istio.io/config: '{"holdApplicationUntilProxyStarts": true, "terminationDrainDuration": "{{ .grace }}s"}'
{{- else if eq .root.Values.mesh.kind "linkerd" }}
linkerd.io/inject: enabled
config.linkerd.io/skip-inbound-ports: {{ join "," (concat (list (printf "%v-%v" $ports.first $ports.last)) $pages) | quote }}
config.linkerd.io/skip-outbound-ports: "{{ $ports.first }}-{{ $ports.last }}"
config.alpha.linkerd.io/proxy-wait-before-exit-seconds: {{ .grace | quote }}
{{- end }}
{{- end }}

{{/* The variables that all four processes have. */}}
{{- define "triptych.environment" -}}
- {name: OMP_WAIT_POLICY, value: PASSIVE}
- {name: HOME, value: /home/triptych}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if .root.Values.metrics.enabled }}
- {name: OTEL_EXPORTER_PROMETHEUS_HOST, value: "0.0.0.0"}
{{- end }}
{{- with .root.Values.telemetry.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_{{ if $.root.Values.metrics.enabled }}TRACES_{{ end }}ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "triptych.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
