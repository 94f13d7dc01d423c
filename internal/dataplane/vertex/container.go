package vertex

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/catalogue"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/manifest"
)

// plan is what runs for a container. It is decided from the manifest and the flags alone, by the same code for a run and for `levada validate --runnable`.
//
// Invariant: at most one of command and attach is set. With neither a builtin runs, which image chooses.
type plan struct {
	// command is the program with its arguments, variables replaced.
	command []string
	attach  string // the socket directory of a program that is started elsewhere
	// image is empty where a command stands in for it.
	image string
	// args are the container's. They are part of command already, and of their own for a builtin.
	args []string
	// values are the variables of the contract and of the manifest. Those that all processes inherit are not among them.
	values map[string]string
	// mounts is empty for a builtin, which has no file system of its own.
	mounts []mountPlan
}

// mountPlan is a volume at its mount path.
type mountPlan struct {
	// target is an absolute, clean path below /. subPath is inside the volume, or empty for all of it.
	volume, target, subPath string
	// files are the contents of a volume of ConfigMaps or Secrets, by path in the volume; nil for an empty directory, or host.
	files    map[string]string
	host     string // a path of this machine, which exists
	readOnly bool   // always of files: changes would be lost with the next start
}

// Check returns why the container cannot run.
func (e *Env) Check(p manifest.PlacedContainer) error {
	role := function.Role(p.Role)
	pl, err := e.plan(p.Vertex, p.Mono, role, p.Container, p.Volumes)
	if err != nil || pl.command != nil || pl.attach != "" {
		return err
	}
	opt := catalogue.Options{Env: pl.values, Args: pl.args, Vertex: p.Vertex}
	var program *catalogue.Program
	if p.Builtin != nil {
		program, err = catalogue.Named(p.Builtin.Name, p.Builtin.Args, p.Builtin.KWArgs, opt)
	} else {
		program, err = builtinFor(pl, role, p.Vertex, opt)
	}
	if err != nil {
		return err
	}
	switch {
	case role == function.UDSource && program.Source == nil:
		return fmt.Errorf("its udsource is the builtin %s, which is not a source", program.Name)
	case (role == function.UDF || role == function.Transformer) && program.Map == nil:
		return fmt.Errorf("its %s is the builtin %s, which is not a map function", role, program.Name)
	case strings.HasSuffix(string(role), "udsink") && program.Sink == nil:
		return fmt.Errorf("its %s is the builtin %s, which is not a sink", role, program.Name)
	}
	return nil
}

// builtinFor finds what stands in for an image.
func builtinFor(pl *plan, role function.Role, vertex string, opt catalogue.Options) (*catalogue.Program, error) {
	if pl.image == "" {
		return nil, fmt.Errorf("its %s has neither an image nor a command: say which program it is with --function %s=COMMAND", role, vertex)
	}
	p, err := catalogue.ForImage(pl.image, opt)
	if err != nil {
		return nil, fmt.Errorf("its %s is the image %s, which this process does not start: %w. Say which local program stands in for it with --function %s=COMMAND", role, pl.image, err, vertex)
	}
	return p, nil
}

// plan decides what runs for a container. An error says which field of the container it is about, and what is expected there.
func (e *Env) plan(vertex string, mono bool, role function.Role, c *v1alpha1.Container, volumes []corev1.Volume) (*plan, error) {
	p := &plan{}
	var err error
	if p.command, p.image, err = e.program(vertex, role, c); err != nil {
		return nil, err
	}
	if p.values, err = e.variables(vertex, mono, c); err != nil {
		return nil, err
	}
	if len(p.command) > 0 && strings.HasPrefix(p.command[0], attachPrefix) {
		// Its arguments, variables and volumes are the affair of what starts it.
		p.attach, p.command = strings.TrimPrefix(p.command[0], attachPrefix), nil
		return p, nil
	}
	if c == nil {
		return p, nil
	}
	for _, a := range c.Args {
		p.args = append(p.args, expand(a, p.values))
	}
	if p.command == nil {
		return p, nil
	}
	if c.Image == "" && len(c.Command) > 0 { // a command of the flags is taken as it is
		for i := range p.command {
			p.command[i] = expand(p.command[i], p.values)
		}
	}
	p.command = append(p.command, p.args...)
	for _, m := range c.VolumeMounts {
		planned, err := e.mount(m, volumes, p.values)
		if err != nil {
			return nil, fmt.Errorf("volume mount %s: %w", m.Name, err)
		}
		p.mounts = append(p.mounts, planned)
	}
	if len(p.mounts) > 0 && !function.CanMount() {
		return nil, errors.New("it has volume mounts, which need a mount namespace: run levada as root on Linux, or allow user namespaces (see docs/functions.md)")
	}
	return p, nil
}

// expand replaces $(NAME) as Kubernetes does: $$ is a $, and what is not defined stays.
func expand(s string, values map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
			continue
		case '(':
			if end := strings.IndexByte(s[i:], ')'); end > 0 {
				if v, ok := values[s[i+2:i+end]]; ok {
					b.WriteString(v)
				} else {
					b.WriteString(s[i : i+end+1])
				}
				i += end
				continue
			}
		}
		b.WriteByte('$')
	}
	return b.String()
}

// variables are those of the contract (section 1.19) and the container's own, in Kubernetes' order: envFrom, then env, later ones win.
func (e *Env) variables(vertex string, mono bool, c *v1alpha1.Container) (map[string]string, error) {
	values := map[string]string{
		"NUMAFLOW_NAMESPACE": e.Namespace, "NUMAFLOW_POD": e.pod(vertex), "NUMAFLOW_REPLICA": strconv.Itoa(e.Replica.Number),
	}
	if mono {
		values["NUMAFLOW_MONO_VERTEX_NAME"] = vertex
	} else {
		values["NUMAFLOW_PIPELINE_NAME"], values["NUMAFLOW_VERTEX_NAME"] = e.Pipeline, vertex
	}
	if c == nil {
		return values, nil
	}
	for i := range c.EnvFrom {
		if err := e.envFrom(&c.EnvFrom[i], values); err != nil {
			return nil, fmt.Errorf("envFrom: %w", err)
		}
	}
	for _, v := range c.Env {
		if v.ValueFrom == nil {
			values[v.Name] = expand(v.Value, values)
			continue
		}
		value, found, err := e.valueFrom(vertex, c, v.ValueFrom)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", v.Name, err)
		}
		if found {
			values[v.Name] = value
		}
	}
	return values, nil
}

// envFrom adds all values of a ConfigMap or a Secret.
func (e *Env) envFrom(from *corev1.EnvFromSource, values map[string]string) error {
	kind, name, optional := "", "", (*bool)(nil)
	switch {
	case from.ConfigMapRef != nil:
		kind, name, optional = "ConfigMap", from.ConfigMapRef.Name, from.ConfigMapRef.Optional
	case from.SecretRef != nil:
		kind, name, optional = "Secret", from.SecretRef.Name, from.SecretRef.Optional
	default:
		return errors.New("expected configMapRef or secretRef")
	}
	all, err := e.values(kind, name)
	if err != nil && !isTrue(optional) {
		return err
	}
	for k, v := range all {
		values[from.Prefix+k] = v
	}
	return nil
}

// pod is what Numaflow would call the pod: functions use it as the name of their instance.
func (e *Env) pod(vertex string) string {
	if vertex == e.Pipeline {
		return fmt.Sprintf("%s-mv-%d", vertex, e.Replica.Number)
	}
	return fmt.Sprintf("%s-%s-%d", e.Pipeline, vertex, e.Replica.Number)
}

// isTrue is for the optional fields of references: what they name may be missing then.
func isTrue(b *bool) bool { return b != nil && *b }

// values are those of a ConfigMap or a Secret.
func (e *Env) values(kind, name string) (map[string]string, error) {
	if e.Values == nil {
		return nil, fmt.Errorf("there is no %s %s", kind, name)
	}
	return e.Values(kind, name)
}

// valueFrom is the value of a variable that refers to something else. found is false for an optional reference to what is not there: the variable is not set then.
func (e *Env) valueFrom(vertex string, c *v1alpha1.Container, from *corev1.EnvVarSource) (value string, found bool, err error) {
	switch {
	case from.SecretKeyRef != nil:
		if value, err = e.Secret(from.SecretKeyRef.Name, from.SecretKeyRef.Key); err != nil && isTrue(from.SecretKeyRef.Optional) {
			return "", false, nil
		}
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		all, err := e.values("ConfigMap", ref.Name)
		value, found = all[ref.Key]
		if err == nil && !found {
			err = fmt.Errorf("ConfigMap %s has no key %s", ref.Name, ref.Key)
		}
		if isTrue(ref.Optional) {
			err = nil // also where there is no such ConfigMap
		}
		return value, found, err
	case from.FieldRef != nil: // what a pod has; here the nearest to it
		value, err = e.field(vertex, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = resourceField(c, from.ResourceFieldRef)
		return value, true, err
	}
	return "", false, errors.New("valueFrom: expected secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef")
}

// field is what a field of the pod would be, here.
func (e *Env) field(vertex, path string) (string, error) {
	switch path {
	case "metadata.name":
		return e.pod(vertex), nil
	case "metadata.namespace":
		return e.Namespace, nil
	case "metadata.uid":
		// The same at each start, and another one for each pod, as a program that uses it for a file name expects.
		h := sha256.Sum256([]byte(e.Namespace + "/" + e.pod(vertex)))
		return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16]), nil
	case "spec.nodeName":
		return os.Hostname()
	case "spec.serviceAccountName":
		return "default", nil
	case "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs":
		return e.Listen.Address, nil
	}
	// The two that take a key, written as Kubernetes writes them: metadata.labels['KEY'].
	for prefix, of := range map[string]map[string]string{"metadata.labels['": e.labels(vertex), "metadata.annotations['": e.Meta.GetAnnotations()} {
		if rest, ok := strings.CutPrefix(path, prefix); ok && strings.HasSuffix(rest, "']") {
			return of[strings.TrimSuffix(rest, "']")], nil
		}
	}
	return "", fmt.Errorf("fieldRef %q: expected metadata.name, namespace, uid, labels['KEY'] or annotations['KEY'], spec.nodeName or serviceAccountName, status.podIP or hostIP", path)
}

// labels are those of the pod. Labels of the manifest win, as they do in Kubernetes.
func (e *Env) labels(vertex string) map[string]string {
	labels := map[string]string{"numaflow.numaproj.io/pipeline-name": e.Pipeline, "numaflow.numaproj.io/vertex-name": vertex}
	for k, v := range e.Meta.GetLabels() {
		labels[k] = v
	}
	return labels
}

// resourceField is a limit or request of the container; without one, what this machine has.
func resourceField(c *v1alpha1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	list, name, _ := strings.Cut(ref.Resource, ".")
	from := map[string]corev1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests}
	if _, ok := from[list]; !ok || name == "" {
		return "", fmt.Errorf("resourceFieldRef %q: expected limits.NAME or requests.NAME", ref.Resource)
	}
	q, ok := from[list][corev1.ResourceName(name)]
	if !ok {
		switch name {
		case "cpu":
			q = *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
		case "memory":
			q = *resource.NewQuantity(machineMemory(), resource.BinarySI)
		default:
			return "0", nil
		}
	}
	// Kubernetes rounds up to whole divisors: 1 CPU and 1 byte where none is given.
	divisor := int64(1)
	if name == "cpu" {
		if divisor = ref.Divisor.MilliValue(); divisor == 0 {
			divisor = 1000
		}
		return strconv.FormatInt((q.MilliValue()+divisor-1)/divisor, 10), nil
	}
	if d := ref.Divisor.Value(); d > 0 {
		divisor = d
	}
	return strconv.FormatInt((q.Value()+divisor-1)/divisor, 10), nil
}

// machineMemory is the memory of this machine in bytes.
func machineMemory() int64 {
	b, _ := os.ReadFile("/proc/meminfo") // elsewhere it is not known: 0
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// mount plans one mount. The error is about what this machine cannot give, or what would lead outside of the volume.
func (e *Env) mount(m corev1.VolumeMount, volumes []corev1.Volume, values map[string]string) (p mountPlan, err error) {
	i := slices.IndexFunc(volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
	if i < 0 {
		return p, errors.New("the vertex has no volume of that name")
	}
	if !filepath.IsAbs(m.MountPath) || filepath.Clean(m.MountPath) == "/" {
		return p, fmt.Errorf("mountPath %q: expected an absolute path below /", m.MountPath)
	}
	p = mountPlan{volume: m.Name, target: filepath.Clean(m.MountPath), subPath: m.SubPath, readOnly: m.ReadOnly}
	if m.SubPathExpr != "" {
		p.subPath = expand(m.SubPathExpr, values)
	}
	// A path that leads out of the volume would give the function any file of this machine.
	if p.subPath != "" && !filepath.IsLocal(p.subPath) {
		return p, fmt.Errorf("subPath %q: expected a path inside the volume", p.subPath)
	}
	v := volumes[i]
	switch {
	case v.EmptyDir != nil:
	case v.HostPath != nil:
		p.host = v.HostPath.Path
		if !fileExists(p.host) {
			return p, fmt.Errorf("hostPath %s does not exist on this machine", p.host)
		}
	case v.ConfigMap != nil:
		p.files, err = e.files("ConfigMap", v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
		p.readOnly = true
	case v.Secret != nil:
		p.files, err = e.files("Secret", v.Secret.SecretName, v.Secret.Items, v.Secret.Optional)
		p.readOnly = true
	case v.Projected != nil:
		p.files, err = e.projected(v.Projected.Sources)
		p.readOnly = true
	default:
		err = errors.New("expected a volume of ConfigMap, Secret, projected, emptyDir or hostPath")
	}
	return p, err
}

// projected are the files of several ConfigMaps and Secrets together. Later ones win.
func (e *Env) projected(sources []corev1.VolumeProjection) (map[string]string, error) {
	files := map[string]string{}
	for _, s := range sources {
		var some map[string]string
		var err error
		switch {
		case s.ConfigMap != nil:
			some, err = e.files("ConfigMap", s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
		case s.Secret != nil:
			some, err = e.files("Secret", s.Secret.Name, s.Secret.Items, s.Secret.Optional)
		default:
			err = errors.New("a projected volume can have ConfigMaps and Secrets here")
		}
		if err != nil {
			return files, err
		}
		maps.Copy(files, some)
	}
	return files, nil
}

// files are the contents of a ConfigMap or a Secret as files: all keys, or those of items under their paths.
func (e *Env) files(kind, name string, items []corev1.KeyToPath, optional *bool) (map[string]string, error) {
	all, err := e.values(kind, name)
	if err != nil && isTrue(optional) {
		return map[string]string{}, nil
	}
	if err != nil || len(items) == 0 {
		return all, err
	}
	files := map[string]string{}
	for _, i := range items {
		v, ok := all[i.Key]
		switch {
		case !ok && !isTrue(optional):
			return nil, fmt.Errorf("%s %s has no key %s", kind, name, i.Key)
		case ok && !filepath.IsLocal(i.Path):
			return nil, fmt.Errorf("item %s: path %q: expected a path inside the volume", i.Key, i.Path)
		case ok:
			files[i.Path] = v
		}
	}
	return files, nil
}

// mounts makes the directories of a plan's volumes. A volume has one directory for all containers of its vertex.
func (e *Env) mounts(vertex string, plans []mountPlan) (all []function.Mount, err error) {
	for _, p := range plans {
		source := p.host // used as it is: nothing is created on it
		if source == "" {
			source = filepath.Join(e.SocketRoot, "volumes", e.Pipeline+"."+vertex, p.volume)
			if err := os.MkdirAll(source, 0o755); err != nil {
				return nil, err
			}
			if p.files == nil && e.FunctionUser != nil { // an empty directory is for the function to write to
				if err := os.Chown(source, e.FunctionUser.UID, e.FunctionUser.GID); err != nil {
					return nil, err
				}
			}
		}
		for name, content := range p.files {
			path := filepath.Join(source, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return nil, err
			}
			// Secrets are for the user of the function alone. It is another one than ours with FunctionUser.
			mode := os.FileMode(0o600)
			if e.FunctionUser != nil {
				mode = 0o644
			}
			if err := os.WriteFile(path, []byte(content), mode); err != nil {
				return nil, err
			}
		}
		if p.subPath != "" {
			source = filepath.Join(source, p.subPath)
			if p.files == nil && p.host == "" {
				if err := os.MkdirAll(source, 0o777); err != nil {
					return nil, err
				}
			}
		}
		all = append(all, function.Mount{Source: source, Target: p.target, ReadOnly: p.readOnly})
	}
	return all, nil
}
