package manifest

import (
	"cmp"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/api/v1alpha1"
)

// PlacedContainer is a container of user code with its place: what a run has to find a program for.
//
// +kubebuilder:object:generate=false
type PlacedContainer struct {
	Vertex    string
	Mono      bool
	Role      v1alpha1.Role
	Path      string
	Container *v1alpha1.Container
	Builtin   *v1alpha1.Builtin
	Volumes   []corev1.Volume
}

// Containers are the containers of user code of a Pipeline or a MonoVertex.
func Containers(o Object) (all []PlacedContainer) {
	mono, isMono := o.Manifest.(*v1alpha1.MonoVertex)
	for _, v := range verticesOf(o) {
		c := PlacedContainer{Vertex: v.part.Name, Mono: isMono, Volumes: v.part.Volumes}
		if isMono {
			c.Vertex, c.Volumes = mono.Name, mono.Spec.Volumes
		}
		add := func(role v1alpha1.Role, at path, container *v1alpha1.Container, builtin *v1alpha1.Builtin) {
			c.Role, c.Path, c.Container, c.Builtin = role, string(at), container, builtin
			all = append(all, c)
		}
		if s := v.part.Source; s != nil {
			if s.UDSource != nil {
				add(v1alpha1.RoleUDSource, v.at.at("source.udsource.container"), s.UDSource.Container, nil)
			}
			if t := s.Transformer; t != nil {
				add(v1alpha1.RoleTransformer, v.at.at("source.transformer.container"), t.Container, t.Builtin)
			}
		}
		if u := v.part.UDF; u != nil && u.GroupBy == nil {
			add(v1alpha1.RoleUDF, v.at.at("udf.container"), u.Container, u.Builtin)
		}
		if s := v.part.Sink; s != nil {
			if s.UDSink != nil {
				add(v1alpha1.RoleUDSink, v.at.at("sink.udsink.container"), s.UDSink.Container, nil)
			}
			if s.Fallback != nil && s.Fallback.UDSink != nil {
				add(v1alpha1.RoleFallbackSink, v.at.at("sink.fallback.udsink.container"), s.Fallback.UDSink.Container, nil)
			}
			if s.OnSuccess != nil && s.OnSuccess.UDSink != nil {
				add(v1alpha1.RoleOnSuccessSink, v.at.at("sink.onSuccess.udsink.container"), s.OnSuccess.UDSink.Container, nil)
			}
		}
	}
	return all
}

// SecretUse is a secret that a source or a sink needs, outside of containers.
//
// +kubebuilder:object:generate=false
type SecretUse struct {
	Path   string
	Secret *corev1.SecretKeySelector
}

// SecretUses are the secrets that the sources and sinks need.
func SecretUses(o Object) (all []SecretUse) {
	for _, v := range verticesOf(o) {
		if v.part.Source != nil {
			secretsIn(reflect.ValueOf(v.part.Source), v.at.at("source"), &all)
		}
		if v.part.Sink != nil {
			secretsIn(reflect.ValueOf(v.part.Sink), v.at.at("sink"), &all)
		}
	}
	return all
}

func secretsIn(v reflect.Value, at path, all *[]SecretUse) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		if s, ok := v.Interface().(*corev1.SecretKeySelector); ok {
			*all = append(*all, SecretUse{string(at), s})
			return
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || v.Type() == reflect.TypeFor[v1alpha1.Container]() {
		return
	}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		inside := at
		if name != "" {
			inside = at.at(name)
		}
		secretsIn(v.Field(i), inside, all)
	}
}

// IgnoredByRun warns of what a manifest says of containers and pods that only a cluster can do.
func IgnoredByRun(o Object) Problems {
	r := &report{object: o}
	warn := func(set bool, at path, message string) {
		if set {
			r.add(at, Problem{Code: CodeIgnoresContainer, Message: at.last() + ": " + message})
		}
	}
	for _, p := range Containers(o) {
		c, at := p.Container, path(p.Path)
		if c == nil {
			continue
		}
		warn(len(c.Resources.Limits)+len(c.Resources.Requests) > 0, at.at("resources"), "limits and requests are not enforced by levada run")
		warn(c.SecurityContext != nil, at.at("securityContext"), "it is not applied by levada run; --function-user chooses the user")
		warn(c.LivenessProbe != nil, at.at("livenessProbe"), "it is not used by levada run, which has a processing timeout for each call")
		warn(c.ReadinessProbe != nil, at.at("readinessProbe"), "it is not used by levada run, which asks the function whether it is ready")
	}
	pod := func(at path, initContainers, sidecars []corev1.Container) {
		warn(len(initContainers) > 0, at.at("initContainers"), "they are not run by levada run")
		warn(len(sidecars) > 0, at.at("sidecars"), "they are not run by levada run")
	}
	if m, ok := o.Manifest.(*v1alpha1.MonoVertex); ok {
		pod("spec", m.Spec.InitContainers, m.Spec.Sidecars)
	} else {
		for _, v := range verticesOf(o) {
			pod(v.at, v.part.InitContainers, v.part.Sidecars)
		}
	}
	return r.problems
}

// ProblemAt is a problem at a path of the object, with the place in its file.
func (o Object) ProblemAt(at string, p Problem) Problem {
	p.Path = at
	p.Severity = cmp.Or(p.Severity, p.Code.severity())
	p.File, p.Line, p.Column = o.locator.position(path(at))
	return p
}
