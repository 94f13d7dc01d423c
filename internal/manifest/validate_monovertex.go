package manifest

import (
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
)

var monoVertexRules = []func(*report, *v1alpha1.MonoVertex){
	monoVertexHasBothEnds,
	monoVertexEndsAreValid,
	monoVertexFunctionIsAMap,
	monoVertexSizeIsValid,
	monoVertexLimitsAreValid,
	monoVertexContainersAreNamed,
	monoVertexStreamingIsPossible,
	bypassLeadsToSinks,
}

func checkMonoVertex(r *report, m *v1alpha1.MonoVertex) {
	for _, rule := range monoVertexRules {
		rule(r, m)
	}
}

func monoVertexHasBothEnds(r *report, m *v1alpha1.MonoVertex) {
	if m.Spec.Source == nil {
		r.missing("spec.source", Problem{Code: CodeMonoVertexEnds, Message: "a MonoVertex needs a source", Expected: "a source and a sink"})
	}
	if m.Spec.Sink == nil {
		r.missing("spec.sink", Problem{Code: CodeMonoVertexEnds, Message: "a MonoVertex needs a sink", Expected: "a source and a sink"})
	}
}

func monoVertexEndsAreValid(r *report, m *v1alpha1.MonoVertex) {
	if m.Spec.Source != nil {
		checkSource(r, sourceView{source: m.Spec.Source, vertex: m.Name, at: "spec.source"})
	}
	if m.Spec.Sink != nil {
		checkSink(r, sinkView{sink: m.Spec.Sink, vertex: m.Name, at: "spec.sink"})
	}
}

func monoVertexFunctionIsAMap(r *report, m *v1alpha1.MonoVertex) {
	if m.Spec.UDF == nil {
		return
	}
	if m.Spec.UDF.GroupBy != nil {
		r.add("spec.udf.groupBy", Problem{Code: CodeMonoVertexReduce, Message: "a MonoVertex has no windows", Hint: "a reduce needs a Pipeline"})
		withoutGroupBy := *m.Spec.UDF
		withoutGroupBy.GroupBy = nil
		checkUDF(r, &withoutGroupBy, m.Name, "spec.udf")
		return
	}
	checkUDF(r, m.Spec.UDF, m.Name, "spec.udf")
}

func monoVertexSizeIsValid(r *report, m *v1alpha1.MonoVertex) {
	atLeast(r, m.Spec.Replicas, 0, "spec.replicas", CodeNumber)
	checkScale(r, &m.Spec.Scale, "spec.scale")
	checkUpdateStrategy(r, &m.Spec.UpdateStrategy, "spec.updateStrategy")
	enum(r, "spec.lifecycle.desiredPhase", CodeEnum, m.Spec.Lifecycle.DesiredPhase, v1alpha1.DesiredRunning, v1alpha1.DesiredPaused)
	// The daemon's service has the longest name made of the MonoVertex's.
	if service := m.Name + "-mv-daemon-svc"; len(service) > 63 && len(m.Name) <= 63 {
		r.add("metadata.name", Problem{
			Code: CodeNamesTooLong, Message: fmt.Sprintf("the service %q would have a name of %d characters, and Kubernetes takes at most 63", service, len(service)),
			Hint: fmt.Sprintf("shorten the name by %d characters", len(service)-63),
		})
	}
}

func monoVertexLimitsAreValid(r *report, m *v1alpha1.MonoVertex) {
	if l := m.Spec.Limits; l != nil {
		checkLimits(r, v1alpha1.VertexLimits{ReadBatchSize: l.ReadBatchSize, ReadTimeout: l.ReadTimeout, Concurrency: l.Concurrency, RateLimit: l.RateLimit}, nil, "spec.limits")
	}
}

func monoVertexContainersAreNamed(r *report, m *v1alpha1.MonoVertex) {
	checkContainerNames(r, m.Spec.InitContainers, m.Spec.Sidecars, "spec")
}

func monoVertexStreamingIsPossible(r *report, m *v1alpha1.MonoVertex) {
	if m.Spec.Streaming != nil && *m.Spec.Streaming && m.Spec.Source != nil && m.Spec.Source.Kafka != nil {
		r.add("spec.streaming", Problem{
			Code: CodeMonoVertexStreaming, Message: "a kafka source cannot be read message by message", Expected: "streaming: false",
			Hint: "Kafka commits the highest offset of a partition, and so would commit messages that are still on their way",
		})
	}
}

func bypassLeadsToSinks(r *report, m *v1alpha1.MonoVertex) {
	b := m.Spec.Bypass
	if b == nil {
		return
	}
	const at = path("spec.bypass")
	if b.Sink == nil && b.Fallback == nil && b.OnSuccess == nil {
		r.missing(at, Problem{Code: CodeBypass, Message: "bypass has no conditions", Expected: "conditions for sink, fallback or onSuccess"})
	}
	sink := m.Spec.Sink
	for _, to := range []struct {
		field      string
		conditions *v1alpha1.ForwardConditions
		exists     bool
	}{
		{"sink", b.Sink, sink != nil},
		{"fallback", b.Fallback, sink != nil && sink.Fallback != nil},
		{"onSuccess", b.OnSuccess, sink != nil && sink.OnSuccess != nil},
	} {
		if to.conditions == nil {
			continue
		}
		checkConditions(r, to.conditions, at.at(to.field))
		if !to.exists && sink != nil {
			r.add(at.at(to.field), Problem{Code: CodeBypass, Message: fmt.Sprintf("bypass leads to %s, and the sink has none", to.field), Hint: "add sink." + to.field})
		}
	}
}

// checkServing looks at the HTTP server of a ServingPipeline.
func checkServing(r *report, s *v1alpha1.ServingSpec) {
	const at = path("spec.serving")
	checkPorts(r, s.Ports, at.at("ports"))
	checkAuthorization(r, s.Auth, at.at("auth"))
	atLeast(r, s.Replicas, 0, at.at("replicas"), CodeNumber)
	atLeast(r, s.RequestTimeoutSeconds, 1, at.at("requestTimeoutSeconds"), CodeNumber)
	if h := s.MsgIDHeaderKey; h != nil && !isHeaderName(*h) {
		r.add(at.at("msgIDHeaderKey"), Problem{Code: CodeServing, Message: fmt.Sprintf("%s cannot be the name of a header", quote(*h)), Expected: "letters, digits and '-'"})
	}
	if s.Store != nil && (s.Store.Container == nil || s.Store.Container.Image == "") {
		r.required(at.at("store.container.image"), "the image that keeps responses")
	}
}

func isHeaderName(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}
