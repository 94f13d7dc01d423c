package manifest

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/levada-io/levada/api/v1alpha1"
)

// vertexView is a vertex as its rules see it.
type vertexView struct {
	pipeline     *v1alpha1.PipelineSpec
	pipelineName string
	serving      bool
	vertex       *v1alpha1.AbstractVertex
	at           path
}

var vertexRules = []func(*report, vertexView){
	vertexHasOneRole,
	vertexSourceIsValid,
	vertexSinkIsValid,
	vertexFunctionIsValid,
	vertexLimitsAreValid,
	vertexScaleIsValid,
	partitionsAreAllowed,
	orderedIsFixedInSize,
	vertexContainersAreNamed,
	sourceHasNoSidecars,
	sideInputsExist,
	vertexUpdatesAreValid,
}

func checkVertex(r *report, v vertexView) {
	for _, rule := range vertexRules {
		rule(r, v)
	}
}

func vertexHasOneRole(r *report, v vertexView) {
	exactlyOne(r, v.at, CodeVertexRole, "a vertex", []choice{
		{"source", v.vertex.Source != nil}, {"sink", v.vertex.Sink != nil}, {"udf", v.vertex.UDF != nil},
	})
}

func vertexSourceIsValid(r *report, v vertexView) {
	if s := v.vertex.Source; s != nil {
		checkSource(r, sourceView{source: s, vertex: v.vertex.Name, serving: v.serving, at: v.at.at("source")})
	}
}

func vertexSinkIsValid(r *report, v vertexView) {
	if s := v.vertex.Sink; s != nil {
		checkSink(r, sinkView{sink: s, vertex: v.vertex.Name, serving: v.serving, at: v.at.at("sink")})
	}
}

func vertexFunctionIsValid(r *report, v vertexView) {
	if f := v.vertex.UDF; f != nil {
		checkUDF(r, f, v.vertex.Name, v.at.at("udf"))
		if f.GroupBy != nil && v.serving && v.pipeline != nil {
			r.add(v.at.at("udf.groupBy"), Problem{Code: CodeServing, Message: "a ServingPipeline cannot have a reduce", Hint: "a window joins messages of several requests, so that no response belongs to one of them"})
		}
	}
}

func vertexLimitsAreValid(r *report, v vertexView) {
	if v.vertex.Limits != nil {
		var inherited *v1alpha1.RateLimit
		if v.pipeline != nil && v.pipeline.Limits != nil {
			inherited = v.pipeline.Limits.RateLimit
		}
		checkLimits(r, *v.vertex.Limits, inherited, v.at.at("limits"))
	}
}

func vertexScaleIsValid(r *report, v vertexView) {
	checkScale(r, &v.vertex.Scale, v.at.at("scale"))
	if v.vertex.Scale.Cron != nil && !v.vertex.IsSource() && v.vertex.Type() != "" {
		r.add(v.at.at("scale.cron"), Problem{
			Code: CodeCronPlace, Message: fmt.Sprintf("vertex %q is not a source, and only sources are scaled by the clock", v.vertex.Name),
			Hint: "the vertices behind a source follow its load",
		})
	}
}

func partitionsAreAllowed(r *report, v vertexView) {
	n, at := v.vertex.Partitions, v.at.at("partitions")
	if n == nil {
		return
	}
	atLeast(r, n, 0, at, CodePartitions)
	switch {
	case *n <= 1:
	case v.vertex.IsSource():
		r.add(at, Problem{Code: CodePartitions, Message: fmt.Sprintf("a source reads from no buffer, and so has no %d partitions", *n), Expected: "1"})
	case v.vertex.IsReduce() && !v.vertex.UDF.GroupBy.Keyed:
		r.add(at, Problem{Code: CodePartitions, Message: fmt.Sprintf("a reduce without keys is one group, and so has no %d partitions", *n), Expected: "1, or groupBy.keyed: true"})
	}
}

func orderedIsFixedInSize(r *report, v vertexView) {
	if v.pipeline == nil || !v.pipeline.IsOrdered(v.vertex) {
		return
	}
	for _, bound := range []struct {
		field string
		value *int32
	}{{"scale.min", v.vertex.Scale.Min}, {"scale.max", v.vertex.Scale.Max}} {
		if bound.value != nil && !(v.vertex.Scale.Min != nil && v.vertex.Scale.Max != nil && *v.vertex.Scale.Min == *v.vertex.Scale.Max && int(*v.vertex.Scale.Min) == v.vertex.PartitionCount()) {
			r.add(v.at.at(bound.field), Problem{
				Code: CodeOrderedScale, Message: fmt.Sprintf("vertex %q keeps the order of its messages, and so has as many replicas as partitions", v.vertex.Name),
				Hint: "leave the bounds away, and set partitions",
			})
		}
	}
}

// reservedContainers are the containers that the platform itself puts into pods.
var reservedContainers = []string{
	"numa", "init", "udf", "udsink", "fb-udsink", "ons-udsink", "udsource", "transformer", "udsi", "udstore",
	"init-side-inputs", "side-inputs-synchronizer", "serving", "monitor",
}

func vertexContainersAreNamed(r *report, v vertexView) {
	checkContainerNames(r, v.vertex.InitContainers, v.vertex.Sidecars, v.at)
}

func checkContainerNames(r *report, initContainers, sidecars []corev1.Container, at path) {
	seen := map[string]bool{}
	check := func(containers []corev1.Container, at path) {
		for i, c := range containers {
			name := at.item(i).at("name")
			switch {
			case c.Name == "":
				r.required(name, "a name")
			case slices.Contains(reservedContainers, c.Name):
				r.add(name, Problem{Code: CodeContainerName, Message: fmt.Sprintf("the platform has a container %q of its own", c.Name), Expected: "a name other than " + strings.Join(reservedContainers, ", ")})
			case seen[c.Name]:
				r.add(name, Problem{Code: CodeContainerName, Message: fmt.Sprintf("there is a container %q already", c.Name), Expected: "a name that no other container has"})
			}
			seen[c.Name] = true
			if c.Image == "" {
				r.required(at.item(i).at("image"), "an image")
			}
		}
	}
	check(initContainers, at.at("initContainers"))
	check(sidecars, at.at("sidecars"))
}

func sourceHasNoSidecars(r *report, v vertexView) {
	if v.vertex.IsSource() && len(v.vertex.Sidecars) > 0 {
		r.add(v.at.at("sidecars"), Problem{Code: CodeSourceSidecars, Message: fmt.Sprintf("vertex %q is a source, and a source has no sidecars", v.vertex.Name)})
	}
}

func sideInputsExist(r *report, v vertexView) {
	if v.pipeline == nil || len(v.vertex.SideInputs) == 0 {
		return
	}
	names := make([]string, len(v.pipeline.SideInputs))
	for i, s := range v.pipeline.SideInputs {
		names[i] = s.Name
	}
	seen := map[string]bool{}
	for i, name := range v.vertex.SideInputs {
		at := v.at.at("sideInputs").item(i)
		if !slices.Contains(names, name) {
			r.add(at, Problem{Code: CodeSideInputUnknown, Message: fmt.Sprintf("there is no side input %s", quote(name)), DidYouMean: r.suggest(name, names)})
		} else if seen[name] {
			r.add(at, Problem{Code: CodeSideInputTwice, Message: fmt.Sprintf("side input %q is listed twice", name)})
		}
		seen[name] = true
	}
}

func vertexUpdatesAreValid(r *report, v vertexView) {
	checkUpdateStrategy(r, &v.vertex.UpdateStrategy, v.at.at("updateStrategy"))
}

func checkUpdateStrategy(r *report, u *v1alpha1.UpdateStrategy, at path) {
	enum(r, at.at("type"), CodeUpdateStrategy, u.Type, v1alpha1.RollingUpdate)
	if u.RollingUpdate == nil || u.RollingUpdate.MaxUnavailable == nil {
		return
	}
	// A scale of 100 makes the percentage itself out of it.
	n, err := intstr.GetScaledValueFromIntOrPercent(u.RollingUpdate.MaxUnavailable, 100, true)
	if err != nil || n < 1 || u.RollingUpdate.MaxUnavailable.Type == intstr.String && n > 100 {
		r.add(at.at("rollingUpdate.maxUnavailable"), Problem{
			Code: CodeUpdateStrategy, Message: fmt.Sprintf("maxUnavailable is %s", quote(u.RollingUpdate.MaxUnavailable.String())),
			Expected: "a number above 0, or a percentage from 1% to 100%",
		})
	}
}

// checkVertexObject looks at a Vertex, which the operator makes and people hardly ever write.
func checkVertexObject(r *report, v *v1alpha1.Vertex) {
	if v.Spec.PipelineName == "" {
		r.required("spec.pipelineName", "the name of the vertex's pipeline")
	}
	checkName(r, v.Spec.Name, "spec.name")
	atLeast(r, v.Spec.Replicas, 0, "spec.replicas", CodeNumber)
	enum(r, "spec.lifecycle.desiredPhase", CodeEnum, v.Spec.Lifecycle.DesiredPhase, v1alpha1.DesiredRunning, v1alpha1.DesiredPaused)
	if b := v.Spec.InterStepBuffer; b != nil && b.Compression != nil {
		compressionType(r, b.Compression.Type, "spec.interStepBuffer.compression.type")
	}
	// It cannot be seen whether the vertex belongs to a ServingPipeline, so what is possible there is possible here.
	checkVertex(r, vertexView{pipelineName: v.Spec.PipelineName, serving: true, vertex: &v.Spec.AbstractVertex, at: "spec"})
}
