{{- define "objstore.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "objstore.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "objstore.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "objstore.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "objstore.selector" -}}
app.kubernetes.io/name: {{ include "objstore.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "objstore.labels" -}}
{{ include "objstore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "objstore.image" -}}
{{- $repository := required "image.repository: the registry that holds your build of the Dockerfile" .Values.image.repository }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{- /* What every pod is the same in. */}}
{{- define "objstore.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 90
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{- /* What serves S3 is told, on one machine and as a gateway. */}}
{{- define "objstore.environment" -}}
- {name: OBJSTORE_SERVER__DATA, value: /data}
- {name: OBJSTORE_SERVER__LISTEN, value: "0.0.0.0:9000"}
- {name: OBJSTORE_SERVER__ADMIN_LISTEN, value: "0.0.0.0:9001"}
- {name: OBJSTORE_SERVER__REGION, value: {{ .Values.region | quote }}}
- {name: OBJSTORE_BLOBS__CODEC, value: {{ .Values.codec | quote }}}
- {name: OBJSTORE_METRICS__PUBLIC, value: {{ .Values.metrics.public | quote }}}
- {name: OBJSTORE_LOG__ACCESS, value: stdout}
{{- with .Values.domains }}
- {name: OBJSTORE_SERVER__DOMAINS, value: {{ join "," . | quote }}}
{{- end }}
{{- if .Values.secrets.root }}
- {name: OBJSTORE_ROOT_ACCESS_KEY_FILE, value: /secrets/root/access-key}
- {name: OBJSTORE_ROOT_SECRET_KEY_FILE, value: /secrets/root/secret-key}
{{- end }}
{{- if .Values.secrets.masterKey }}
- {name: OBJSTORE_SECURITY__MASTER_KEY_FILE, value: /secrets/master/master-key}
{{- end }}
{{- if .Values.secrets.tls }}
- {name: OBJSTORE_TLS__CERTIFICATE, value: /secrets/tls/tls.crt}
- {name: OBJSTORE_TLS__KEY, value: /secrets/tls/tls.key}
{{- end }}
{{- include "objstore.settings" . }}
{{- end }}

{{- define "objstore.settings" }}
{{- range $name, $value := .Values.settings }}
{{- if regexMatch "KEY|URL|SECRET|PASSWORD" $name }}
{{- fail (printf "settings.%s: secrets are not values; name a Secret under secrets" $name) }}
{{- end }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "objstore.secretMounts" -}}
{{- if .Values.secrets.root }}
- {name: root, mountPath: /secrets/root, readOnly: true}
{{- end }}
{{- if .Values.secrets.masterKey }}
- {name: master, mountPath: /secrets/master, readOnly: true}
{{- end }}
{{- if .Values.secrets.tls }}
- {name: tls, mountPath: /secrets/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "objstore.secretVolumes" -}}
{{- if .Values.secrets.root }}
- name: root
  secret: {secretName: {{ .Values.secrets.root | quote }}, defaultMode: 0440}
{{- end }}
{{- if .Values.secrets.masterKey }}
- name: master
  secret: {secretName: {{ .Values.secrets.masterKey | quote }}, defaultMode: 0440}
{{- end }}
{{- if .Values.secrets.tls }}
- name: tls
  secret: {secretName: {{ .Values.secrets.tls | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- /* Recovery of large metadata takes its time before anything answers: startupProbe waits half an hour. */}}
{{- define "objstore.probes" -}}
{{- $scheme := ternary "HTTPS" "HTTP" (not (empty .Values.secrets.tls)) }}
startupProbe:
  httpGet: {path: /health/live, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 360
livenessProbe:
  httpGet: {path: /health/live, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /health/ready, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- define "objstore.claim" -}}
- metadata:
    name: {{ .name }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .class }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}
