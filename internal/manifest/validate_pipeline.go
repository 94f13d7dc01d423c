package manifest

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/levada-io/levada/api/v1alpha1"
)

// pipelineView is a pipeline as its rules see it: also the one inside a ServingPipeline.
type pipelineView struct {
	name    string
	spec    *v1alpha1.PipelineSpec
	at      path
	serving bool
}

// pipelineRules each look at one aspect of a pipeline as a whole.
var pipelineRules = []func(*report, pipelineView){
	pipelineHasASourceAndASink,
	servingHasItsSource,
	vertexNamesAreUnique,
	serviceNamesFit,
	edgesJoinVertices,
	edgesAreUnique,
	edgesGoForward,
	everyVertexIsReached,
	graphIsConnected,
	noReduceAfterACycle,
	edgeConditionsAreValid,
	edgesSayWhatFullMeans,
	pipelineLimitsAreValid,
	watermarkIsValid,
	lifecycleIsValid,
	compressionExists,
	sideInputsAreValid,
	bufferServiceNameIsValid,
}

func checkPipeline(r *report, p pipelineView) {
	for _, rule := range pipelineRules {
		rule(r, p)
	}
	for i := range p.spec.Vertices {
		checkVertex(r, vertexView{
			pipeline: p.spec, pipelineName: p.name, serving: p.serving,
			vertex: &p.spec.Vertices[i], at: p.at.at("vertices").item(i),
		})
	}
}

func (p pipelineView) names() []string {
	names := make([]string, len(p.spec.Vertices))
	for i, v := range p.spec.Vertices {
		names[i] = v.Name
	}
	return names
}

func pipelineHasASourceAndASink(r *report, p pipelineView) {
	at := p.at.at("vertices")
	if len(p.spec.Vertices) == 0 {
		r.missing(at, Problem{Code: CodeNoSourceOrSink, Message: "the pipeline has no vertices", Expected: "at least one source and one sink"})
		return
	}
	sources, sinks := 0, 0
	for i := range p.spec.Vertices {
		if v := &p.spec.Vertices[i]; v.IsSource() {
			sources++
		} else if v.IsSink() {
			sinks++
		}
	}
	if sources == 0 {
		r.missing(at, Problem{Code: CodeNoSourceOrSink, Message: "the pipeline has no source", Expected: "at least one source and one sink"})
	}
	if sinks == 0 {
		r.missing(at, Problem{Code: CodeNoSourceOrSink, Message: "the pipeline has no sink", Expected: "at least one source and one sink"})
	}
}

func servingHasItsSource(r *report, p pipelineView) {
	if !p.serving || len(p.spec.Vertices) == 0 {
		return
	}
	for i := range p.spec.Vertices {
		if s := p.spec.Vertices[i].Source; s != nil && s.Serving != nil {
			return
		}
	}
	r.missing(p.at.at("vertices"), Problem{Code: CodeServing, Message: "no source of the ServingPipeline takes its requests", Expected: "a source with serving: {}"})
}

func vertexNamesAreUnique(r *report, p pipelineView) {
	first := map[string]int{}
	for i, v := range p.spec.Vertices {
		at := p.at.at("vertices").item(i).at("name")
		checkName(r, v.Name, at)
		if before, twice := first[v.Name]; twice && v.Name != "" {
			r.add(at, Problem{Code: CodeVertexTwice, Message: fmt.Sprintf("vertices[%d] is named %q too", before, v.Name), Hint: "edges name vertices, so each needs a name of its own"})
			continue
		}
		first[v.Name] = i
	}
}

// The headless service of a vertex is the longest name made of its own and the pipeline's.
func serviceNamesFit(r *report, p pipelineView) {
	for i, v := range p.spec.Vertices {
		service := p.name + "-" + v.Name + "-headless"
		if len(service) > validation.DNS1035LabelMaxLength && len(v.Name) <= validation.DNS1035LabelMaxLength {
			r.add(p.at.at("vertices").item(i).at("name"), Problem{
				Code: CodeNamesTooLong, Message: fmt.Sprintf("the service %q would have a name of %d characters, and Kubernetes takes at most %d", service, len(service), validation.DNS1035LabelMaxLength),
				Hint: fmt.Sprintf("shorten the names of the pipeline and the vertex by %d characters together", len(service)-validation.DNS1035LabelMaxLength),
			})
		}
	}
}

func bufferServiceNameIsValid(r *report, p pipelineView) {
	if name := p.spec.InterStepBufferServiceName; name != "" {
		checkName(r, name, p.at.at("interStepBufferServiceName"))
	}
}

func lifecycleIsValid(r *report, p pipelineView) {
	l, at := &p.spec.Lifecycle, p.at.at("lifecycle")
	enum(r, at.at("desiredPhase"), CodeEnum, l.DesiredPhase, v1alpha1.DesiredRunning, v1alpha1.DesiredPaused)
	atLeast(r, l.DeletionGracePeriodSeconds, 0, at.at("deletionGracePeriodSeconds"), CodeNumber)
	atLeast(r, l.PauseGracePeriodSeconds, 0, at.at("pauseGracePeriodSeconds"), CodeNumber)
	atLeast(r, l.DeleteGracePeriodSeconds, 0, at.at("deleteGracePeriodSeconds"), CodeNumber)
	if l.DeleteGracePeriodSeconds != nil && l.DeletionGracePeriodSeconds == nil {
		r.add(at.at("deleteGracePeriodSeconds"), Problem{Code: CodeDeprecated, Message: "deleteGracePeriodSeconds is the old spelling", DidYouMean: "deletionGracePeriodSeconds"})
	}
}

func compressionExists(r *report, p pipelineView) {
	if b := p.spec.InterStepBuffer; b != nil && b.Compression != nil {
		compressionType(r, b.Compression.Type, p.at.at("interStepBuffer.compression.type"))
	}
}

// Upper case is what Numaflow's API documents, lower case is what its data plane reads.
func compressionType(r *report, t v1alpha1.CompressionType, at path) {
	if v1alpha1.CompressionType(strings.ToLower(string(t))) == t || v1alpha1.CompressionType(strings.ToUpper(string(t))) == t || t == "None" {
		lower := v1alpha1.CompressionType(strings.ToLower(string(t)))
		switch lower {
		case "", v1alpha1.CompressionNone, v1alpha1.CompressionGZIP, v1alpha1.CompressionZSTD, v1alpha1.CompressionLZ4:
			return
		}
	}
	words := []string{"none", "gzip", "zstd", "lz4"}
	did := r.suggest(string(t), words)
	for _, w := range words {
		if strings.EqualFold(w, string(t)) {
			did = w
		}
	}
	r.add(at, Problem{Code: CodeCompression, Message: fmt.Sprintf("there is no compression %s", quote(string(t))), Expected: oneOf(words), DidYouMean: did})
}

func watermarkIsValid(r *report, p pipelineView) {
	w, at := &p.spec.Watermark, p.at.at("watermark")
	notNegative(r, w.MaxDelay, at.at("maxDelay"))
	idle, at := w.IdleSource, at.at("idleSource")
	if idle == nil {
		return
	}
	if idle.Threshold == nil {
		r.required(at.at("threshold"), "how long a source must have read nothing to be idle")
	}
	if idle.IncrementBy == nil {
		r.required(at.at("incrementBy"), "how far one increment moves the watermark")
	}
	positive(r, idle.Threshold, at.at("threshold"))
	positive(r, idle.IncrementBy, at.at("incrementBy"))
	positive(r, idle.InitSourceDelay, at.at("initSourceDelay"))
	notNegative(r, idle.StepInterval, at.at("stepInterval"))
	if idle.Threshold == nil {
		return
	}
	if idle.IncrementBy != nil && idle.IncrementBy.Duration > idle.Threshold.Duration {
		r.add(at.at("incrementBy"), Problem{
			Code: CodeIdleSource, Message: fmt.Sprintf("incrementBy %s is more than threshold %s", idle.IncrementBy.Duration, idle.Threshold.Duration),
			Expected: fmt.Sprintf("at most %s", idle.Threshold.Duration), Hint: "a larger step would move the watermark past the present, and what comes then would be late",
		})
	}
	if d := idle.InitSourceDelay; d != nil && d.Duration > 0 && d.Duration < idle.Threshold.Duration {
		r.add(at.at("initSourceDelay"), Problem{
			Code: CodeIdleSource, Message: fmt.Sprintf("initSourceDelay %s is less than threshold %s", d.Duration, idle.Threshold.Duration),
			Expected: fmt.Sprintf("at least %s", idle.Threshold.Duration),
		})
	}
}
