package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
)

// maxAnnotationName is Kubernetes' bound for what stands behind the '/'.
const maxAnnotationName = 63

// checkAnnotations looks at the annotations that are ours. roles are the vertices with the containers that each has.
func checkAnnotations(r *report, roles map[string][]v1alpha1.Role) {
	annotations := r.object.Manifest.GetAnnotations()
	for _, name := range sortedKeys(annotations) {
		if r.full() {
			return
		}
		ours, ok := strings.CutPrefix(name, v1alpha1.AnnotationPrefix)
		if !ok {
			continue
		}
		at := path("metadata.annotations").key(name)
		if len(ours) > maxAnnotationName {
			r.add(at, Problem{
				Code: CodeAnnotationLength, Message: fmt.Sprintf("%s has %d characters behind the '/', and Kubernetes takes at most %d", quote(name), len(ours), maxAnnotationName),
				Hint: "give the vertex a shorter name",
			})
		}
		checkAnnotation(r, at, ours, annotations[name], roles)
	}
}

func checkAnnotation(r *report, at path, name, value string, roles map[string][]v1alpha1.Role) {
	kind, rest, _ := strings.Cut(name, ".")
	switch v1alpha1.AnnotationPrefix + kind {
	case v1alpha1.AnnotationFunction:
		functionAnnotation(r, at, rest, value, roles)
	case v1alpha1.AnnotationProcessingTimeout:
		if rest != "" {
			knownVertex(r, at, rest, roles)
		}
		if d, err := time.ParseDuration(value); err != nil || d <= 0 {
			r.add(at, Problem{Code: CodeAnnotationValue, Message: fmt.Sprintf("%s is not a time limit", quote(value)), Expected: `a duration above 0, such as "30s"`})
		}
	case v1alpha1.AnnotationBlockBytes:
		if rest != "" {
			unknownAnnotation(r, at, name, v1alpha1.AnnotationBlockBytes)
		} else if _, mono := r.object.Manifest.(*v1alpha1.MonoVertex); mono {
			r.add(at, Problem{Code: CodeUnknownAnnotation, Message: "a MonoVertex has no buffers, so that the size of their blocks has no effect", Hint: "remove the annotation"})
		} else if _, ok := v1alpha1.ParseBlockBytes(value); !ok {
			r.add(at, Problem{Code: CodeAnnotationValue, Message: fmt.Sprintf("%s is not a block size", quote(value)), Expected: "1Ki to 64Mi, such as 512Ki"})
		}
	case v1alpha1.AnnotationShards:
		shardsAnnotation(r, at, rest, value, roles)
	default:
		did := r.suggest(kind, []string{"function", "processing-timeout", "block-bytes", "shards"})
		if did != "" {
			did = v1alpha1.AnnotationPrefix + did
			if rest != "" {
				did += "." + rest
			}
		}
		unknownAnnotation(r, at, name, did)
	}
}

func unknownAnnotation(r *report, at path, name, did string) {
	r.add(at, Problem{
		Code: CodeUnknownAnnotation, Message: fmt.Sprintf("there is no annotation %q", v1alpha1.AnnotationPrefix+name), DidYouMean: did,
		Expected: oneOf([]string{v1alpha1.AnnotationFunction + ".VERTEX", v1alpha1.AnnotationFunction + ".VERTEX.ROLE", v1alpha1.AnnotationProcessingTimeout, v1alpha1.AnnotationProcessingTimeout + ".VERTEX", v1alpha1.AnnotationBlockBytes, v1alpha1.AnnotationShards, v1alpha1.AnnotationShards + ".VERTEX"}),
	})
}

// shardsAnnotation looks at the number of shards of one vertex, or of all.
func shardsAnnotation(r *report, at path, vertex, value string, roles map[string][]v1alpha1.Role) {
	p, ok := r.object.Manifest.(*v1alpha1.Pipeline)
	if !ok {
		r.add(at, Problem{Code: CodeUnknownAnnotation, Message: "a MonoVertex has no buffers, so that the number of their shards has no effect", Hint: "remove the annotation"})
		return
	}
	if vertex != "" && !knownVertex(r, at, vertex, roles) {
		return
	}
	n, ok := v1alpha1.ParseShards(value)
	if !ok {
		r.add(at, Problem{Code: CodeAnnotationValue, Message: fmt.Sprintf("%s is not a number of shards", quote(value)), Expected: fmt.Sprintf("1 to %d", v1alpha1.MaxShards)})
		return
	}
	for i := range p.Spec.Vertices {
		v := &p.Spec.Vertices[i]
		switch partitions := v.PartitionCount(); {
		case vertex != "" && v.Name != vertex:
		case vertex != "" && v.Source != nil:
			r.add(at, Problem{Code: CodeAnnotationVertex, Message: fmt.Sprintf("vertex %q has a source and no buffer, so that the number of shards has no effect", v.Name), Hint: "remove the annotation"})
		case v.Source == nil && n*partitions > v1alpha1.MaxShards:
			r.add(at, Problem{
				Code: CodeAnnotationValue, Message: fmt.Sprintf("%d shards in each of the %d partitions of vertex %q are %d", n, partitions, v.Name, n*partitions),
				Expected: fmt.Sprintf("at most %d for a vertex: here, at most %d", v1alpha1.MaxShards, max(1, v1alpha1.MaxShards/partitions)),
			})
			return
		}
	}
}

func functionAnnotation(r *report, at path, target, command string, roles map[string][]v1alpha1.Role) {
	if strings.TrimSpace(command) == "" {
		r.add(at, Problem{Code: CodeAnnotationValue, Message: "the command line is empty", Expected: "a program and its arguments"})
	}
	vertex, role, hasRole := strings.Cut(target, ".")
	if vertex == "" {
		r.add(at, Problem{Code: CodeAnnotationVertex, Message: "the annotation does not say which vertex it concerns", Expected: v1alpha1.AnnotationFunction + ".VERTEX"})
		return
	}
	if !knownVertex(r, at, vertex, roles) {
		return
	}
	has := roles[vertex]
	if !hasRole {
		if !slices.ContainsFunc(has, v1alpha1.Role.IsMain) {
			r.add(at, Problem{Code: CodeAnnotationRole, Message: fmt.Sprintf("vertex %q has no function that a program could stand in for", vertex), Expected: rolesText(has)})
		}
		return
	}
	if !slices.Contains(v1alpha1.Roles(), v1alpha1.Role(role)) {
		r.add(at, Problem{Code: CodeAnnotationRole, Message: fmt.Sprintf("there is no role %q", role), Expected: oneOf(v1alpha1.Roles()), DidYouMean: r.suggest(role, stringsOf(v1alpha1.Roles()))})
	} else if !slices.Contains(has, v1alpha1.Role(role)) {
		r.add(at, Problem{Code: CodeAnnotationRole, Message: fmt.Sprintf("vertex %q has no %s", vertex, role), Expected: rolesText(has)})
	}
}

func rolesText(has []v1alpha1.Role) string {
	if len(has) == 0 {
		return "a vertex with a udf, udsource, udsink or transformer"
	}
	return oneOf(has)
}

func stringsOf[S ~string](values []S) []string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	return words
}

func knownVertex(r *report, at path, vertex string, roles map[string][]v1alpha1.Role) bool {
	if _, ok := roles[vertex]; ok {
		return true
	}
	r.add(at, Problem{
		Code: CodeAnnotationVertex, Message: fmt.Sprintf("there is no vertex %q", vertex),
		DidYouMean: r.suggest(vertex, slices.Collect(maps.Keys(roles))),
	})
	return false
}

func pipelineRoles(p *v1alpha1.PipelineSpec) map[string][]v1alpha1.Role {
	roles := make(map[string][]v1alpha1.Role, len(p.Vertices))
	for i := range p.Vertices {
		v := &p.Vertices[i]
		roles[v.Name] = rolesOf(v.Source, v.Sink, v.UDF)
	}
	return roles
}

func monoVertexRoles(m *v1alpha1.MonoVertex) map[string][]v1alpha1.Role {
	return map[string][]v1alpha1.Role{m.Name: rolesOf(m.Spec.Source, m.Spec.Sink, m.Spec.UDF)}
}

// rolesOf are the places in a vertex where a user's function runs.
func rolesOf(source *v1alpha1.Source, sink *v1alpha1.Sink, udf *v1alpha1.UDF) []v1alpha1.Role {
	var has []v1alpha1.Role
	if source != nil && source.UDSource != nil {
		has = append(has, v1alpha1.RoleUDSource)
	}
	if source != nil && source.Transformer != nil {
		has = append(has, v1alpha1.RoleTransformer)
	}
	if udf != nil {
		has = append(has, v1alpha1.RoleUDF)
	}
	if sink != nil && sink.UDSink != nil {
		has = append(has, v1alpha1.RoleUDSink)
	}
	if sink != nil && sink.Fallback != nil && sink.Fallback.UDSink != nil {
		has = append(has, v1alpha1.RoleFallbackSink)
	}
	if sink != nil && sink.OnSuccess != nil && sink.OnSuccess.UDSink != nil {
		has = append(has, v1alpha1.RoleOnSuccessSink)
	}
	return has
}
