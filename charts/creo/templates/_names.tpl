{{/* What everything of this release begins with. */}}
{{- define "creo.name" -}}
{{- if contains "creo" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-creo" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "creo.operator" -}}{{ include "creo.name" . }}-operator{{- end -}}
{{- define "creo.devicePlugin" -}}{{ include "creo.name" . }}-gpu-device-plugin{{- end -}}

{{/* The user that a ServiceAccount of this release is. Takes (list $ NAME). */}}
{{- define "creo.user" -}}
{{- $root := index . 0 -}}
system:serviceaccount:{{ $root.Release.Namespace }}:{{ index . 1 }}
{{- end -}}

{{/* What selects the pods of a process. Takes (list $ COMPONENT). */}}
{{- define "creo.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: creo
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The labels of everything that belongs to a process. Takes (list $ COMPONENT). */}}
{{- define "creo.labels" -}}
{{- $root := index . 0 -}}
{{ include "creo.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: creo
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "creo.tag" -}}{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- define "creo.registry" -}}{{ .Values.image.registry | trimSuffix "/" }}{{- end -}}

{{/* The reference of one of Creo's images. Takes (list $ NAME). */}}
{{- define "creo.image" -}}
{{- $root := index . 0 -}}
{{ include "creo.registry" $root }}/{{ index . 1 }}:{{ include "creo.tag" $root }}
{{- end -}}

{{- define "creo.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end -}}

{{- define "creo.scrapeAnnotations" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.metrics.annotations -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ index . 1 | quote }}
prometheus.io/path: /metrics
{{- end -}}
{{- end -}}

{{- define "creo.engines" -}}
{{- range $path, $_ := .Files.Glob "files/engines/*.yaml" }}
{{- $name := base $path }}
{{- if not (hasKey $.Values.engines (trimSuffix ".yaml" $name)) }}
{{ $name }}: |
{{- $.Files.Get $path | trimSuffix "\n" | nindent 2 }}
{{- end }}
{{- end }}
{{- range $name, $profile := .Values.engines }}
{{ $name }}.yaml: |
{{- merge (dict "name" $name) $profile | toYaml | nindent 2 }}
{{- end }}
{{- end -}}
