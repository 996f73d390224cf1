{{- define "warren.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimAll "-." -}}
{{- end -}}

{{- define "warren.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimAll "-." -}}
{{- else if contains (include "warren.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimAll "-." -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "warren.name" .) | trunc 50 | trimAll "-." -}}
{{- end -}}
{{- end -}}

{{/* A Service's name begins with a letter and has no dots, which a release's may. */}}
{{- define "warren.serviceName" -}}
{{- printf "%s-metrics" (regexReplaceAll "^([0-9])" (include "warren.fullname" . | replace "." "-") "warren-${1}" | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{/* A name for what has no namespace: two releases in two namespaces must not share it. */}}
{{- define "warren.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "warren.fullname" .) -}}
{{- end -}}

{{- define "warren.selectorLabels" -}}
app.kubernetes.io/name: {{ include "warren.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "warren.labels" -}}
{{ include "warren.selectorLabels" . }}
app.kubernetes.io/part-of: warren
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end -}}

{{- define "warren.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warren.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must name an existing ServiceAccount when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The reference of an image: (dict "image" .Values.image "version" .Chart.AppVersion) */}}
{{- define "warren.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .version .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "warren.subject" -}}
- kind: ServiceAccount
  name: {{ include "warren.serviceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end -}}
