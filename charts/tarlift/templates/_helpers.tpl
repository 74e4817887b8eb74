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

{{/* The labels a selector may use: they must never change between versions. */}}
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

{{/* Where a pod is; and the API server, where kube-proxy does not lead to it. */}}
{{- define "tarlift.env" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
# Go's own limit: that of the pod in MiB with six zeros behind it, which is
# 95 % in bytes. The rest is for what Go does not count.
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
Listeners are bound to the pod's own address: on the host's network anything
wider would serve every network that the node is in. The brackets are right for
IPv4 too, and IPv6 needs them.
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

{{/* What every container of this chart gives up. */}}
{{- define "tarlift.confinement" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where the distributions keep what containerd itself has in /run/containerd and /var/lib/containerd. */}}
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

{{/* Empty where nothing is to be mounted. With an address of its own, containerd is none of a preset's. */}}
{{- define "tarlift.containerd.root" -}}
{{- with .Values.containerd }}
{{- if .rootDirectory }}
{{- .rootDirectory }}
{{- else if not (or .address (has .snapshotter (list "" "overlayfs"))) }}
{{- (index (include "tarlift.presets" . | fromYaml) .preset).root }}/tmpmounts
{{- end }}
{{- end }}
{{- end }}

{{/* What a pod needs, wherever it runs, to reach containerd and the API server as an agent does. */}}
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
  # containerd's socket belongs to root, mode 0660: with no capability
  # left, being its owner is what lets the agent connect.
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
# The socket's directory: a mount of the socket itself would still
# lead to the old one after containerd has restarted. HostToContainer,
# or the mounts of other containers below it could not be unmounted
# while the agent lives.
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
