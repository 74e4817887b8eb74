{{- define "tarlift.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "tarlift.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Selectors are immutable, so these labels must not change between versions. */}}
{{- define "tarlift.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tarlift.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tarlift.labels" -}}
{{ include "tarlift.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tarlift.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The environment of every pod: its namespace and address, its memory limit, and the address of the API server. */}}
{{- define "tarlift.env" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
# GOMEMLIMIT is the pod's limit in MiB followed by six zeros, which is 95 % of the
# limit in bytes. The rest is for memory that Go does not count.
- name: MEMORY_LIMIT_MIB
  valueFrom:
    resourceFieldRef:
      resource: limits.memory
      divisor: 1Mi
- name: GOMEMLIMIT
  value: $(MEMORY_LIMIT_MIB)000000
{{- if .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.apiServer.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.apiServer.port | quote }}
{{- end }}
{{- end }}

{{/*
Listeners are bound to the pod's own address. On the host's network a wider
address would serve every network of the node. IPv6 needs the brackets, and they
are valid for IPv4.
*/}}
{{- define "tarlift.listen" -}}
{{- with .ports }}
{{- if eq (int .metrics) (int .health) }}
{{- fail (printf "%s.ports: metrics and health are one port" $.role) }}
{{- end -}}
- --metrics-bind-address={{ if .metrics }}[$(POD_IP)]:{{ .metrics }}{{ else }}0{{ end }}
- --health-probe-bind-address=[$(POD_IP)]:{{ .health }}
{{- end }}
{{- end }}

{{- define "tarlift.ports" -}}
- name: health
  containerPort: {{ .health }}
{{- if .metrics }}
- name: metrics
  containerPort: {{ .metrics }}
{{- end }}
{{- end }}

{{- define "tarlift.probes" -}}
livenessProbe:
  httpGet:
    path: /healthz
    port: health
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: health
  initialDelaySeconds: 2
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* The security context of every container of this chart. */}}
{{- define "tarlift.confinement" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The socket and the root directory of containerd in each distribution. */}}
{{- define "tarlift.presets" -}}
kubeadm: {address: /run/containerd/containerd.sock, root: /var/lib/containerd}
k3s: {address: /run/k3s/containerd/containerd.sock, root: /var/lib/rancher/k3s/agent/containerd}
rke2: {address: /run/k3s/containerd/containerd.sock, root: /var/lib/rancher/rke2/agent/containerd}
k0s: {address: /run/k0s/containerd.sock, root: /var/lib/k0s/containerd}
microk8s: {address: /var/snap/microk8s/common/run/containerd.sock, root: /var/snap/microk8s/common/var/lib/containerd}
{{- end }}

{{- define "tarlift.containerd.address" -}}
{{- with .Values.containerd }}
{{- .address | default (index (include "tarlift.presets" . | fromYaml) .preset).address }}
{{- end }}
{{- end }}

{{/* Empty if nothing is to be mounted. With containerd.address, the root directory of the preset does not apply. */}}
{{- define "tarlift.containerd.root" -}}
{{- with .Values.containerd }}
{{- if .rootDirectory }}
{{- .rootDirectory }}
{{- else if not (or .address (has .snapshotter (list "" "overlayfs"))) }}
{{- (index (include "tarlift.presets" . | fromYaml) .preset).root }}/tmpmounts
{{- end }}
{{- end }}
{{- end }}

{{/* The part of a pod spec that agents and `helm test` share. */}}
{{- define "tarlift.node.pod" -}}
serviceAccountName: {{ include "tarlift.fullname" . }}-node
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.node }}
hostNetwork: {{ .hostNetwork }}
dnsPolicy: {{ .dnsPolicy }}
priorityClassName: {{ .priorityClassName }}
tolerations:
  {{- toYaml .tolerations | nindent 2 }}
securityContext:
  # containerd's socket belongs to root and has mode 0660. Without capabilities,
  # only its owner can connect.
  runAsUser: 0
  runAsGroup: 0
  seccompProfile:
    type: RuntimeDefault
  {{- with .seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "tarlift.node.flags" -}}
- --address={{ include "tarlift.containerd.address" . }}
- --namespace={{ .Values.containerd.namespace }}
{{- with .Values.containerd.snapshotter }}
- --snapshotter={{ . }}
{{- end }}
- --disk-reserve={{ .Values.node.diskReserve }}
{{- if include "tarlift.containerd.root" . }}
- --containerd-root=/containerd-root
{{- end }}
{{- end }}

{{- define "tarlift.node.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{ include "tarlift.env" . }}
{{- with .Values.node.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tarlift.node.mounts" -}}
# The socket's directory, because a mount of the socket itself would refer to
# the old socket after a restart of containerd. HostToContainer, because
# otherwise the mounts of other containers below the directory could not be
# unmounted while the agent runs.
- name: containerd
  mountPath: {{ dir (include "tarlift.containerd.address" .) }}
  mountPropagation: HostToContainer
  readOnly: true
{{- if include "tarlift.containerd.root" . }}
- name: containerd-root
  mountPath: /containerd-root
  mountPropagation: HostToContainer
  readOnly: true
{{- end }}
{{- end }}

{{- define "tarlift.node.volumes" -}}
- name: containerd
  hostPath:
    path: {{ dir (include "tarlift.containerd.address" .) }}
    type: Directory
{{- with include "tarlift.containerd.root" . }}
- name: containerd-root
  hostPath:
    path: {{ . }}
    type: Directory
{{- end }}
{{- end }}
