{{- define "viaduct.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Every setting is a flag of agent or controller, written as its environment variable. */ -}}
{{- define "viaduct.settings" -}}
VIADUCT_DATASTORE: {{ .Values.datastore | quote }}
VIADUCT_BACKEND: {{ .Values.backend | quote }}
VIADUCT_POOL: {{ .Values.pool | quote }}
{{- if ne .Values.nodeCidrs "off" }}
VIADUCT_NODE_CIDRS: {{ .Values.nodeCidrs | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end -}}
