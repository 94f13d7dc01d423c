package manifest

import (
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
)

// gap is something that a manifest may ask for, and that the engine of this version does not do. When it learns to, its line
// goes, and nothing else changes.
type gap struct {
	code    Code
	message string
	// find gives the paths at which an object asks for it.
	find func(Object) []path
}

// ignored are settings without which a pipeline runs all the same, only not quite as asked.
var ignored = []gap{
	{CodeIgnoresScale, "replicas are not scaled automatically yet", scales},
	{CodeIgnoresWatermark, "this watermark setting is not used yet", watermarkSettings},
	{CodeIgnoresSideInputs, "side inputs are not fetched yet", sideInputUses},
	{CodeIgnoresUpdateStrategy, "pods are not replaced in steps yet", updateStrategies},
	{CodeIgnoresRedisRateLimit, "processes agree on the rate limit through the buffer service, and this Redis server is not used", redisRateLimits},
	{CodeIgnoresNativeRedis, "Levada starts no Redis servers: give levada run the URL of one with --redis", nativeRedis},
	{CodeIgnoresTemplates, "templates are not applied yet", templates},
}

// Unsupported warns of what the engine of this version accepts and does not act on.
//
// Each gap is one warning, at its first place: the rest of the vertices mostly say the same.
func Unsupported(o Object) Problems {
	r := &report{object: o}
	for _, g := range ignored {
		places := g.find(o)
		if len(places) == 0 {
			continue
		}
		message := places[0].last() + ": " + g.message
		if more := len(places) - 1; more > 0 {
			message += fmt.Sprintf(" (and %d more)", more)
		}
		r.add(places[0], Problem{Code: g.code, Message: message})
	}
	r.problems.Sort()
	return r.problems
}

// placed is a part of an object with its path.
type placed[T any] struct {
	at   path
	part T
}

func pipelineOf(o Object) (*v1alpha1.PipelineSpec, path) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		return &m.Spec, "spec"
	case *v1alpha1.ServingPipeline:
		return &m.Spec.Pipeline, "spec.pipeline"
	}
	return nil, ""
}

func verticesOf(o Object) (all []placed[*v1alpha1.AbstractVertex]) {
	if v, ok := o.Manifest.(*v1alpha1.Vertex); ok {
		return []placed[*v1alpha1.AbstractVertex]{{"spec", &v.Spec.AbstractVertex}}
	}
	if m, ok := o.Manifest.(*v1alpha1.MonoVertex); ok { // a MonoVertex has the fields that matter here under the same names
		return []placed[*v1alpha1.AbstractVertex]{{"spec", &v1alpha1.AbstractVertex{
			Source: m.Spec.Source, UDF: m.Spec.UDF, Sink: m.Spec.Sink, Scale: m.Spec.Scale, UpdateStrategy: m.Spec.UpdateStrategy,
		}}}
	}
	p, at := pipelineOf(o)
	if p == nil {
		return nil
	}
	for i := range p.Vertices {
		all = append(all, placed[*v1alpha1.AbstractVertex]{at.at("vertices").item(i), &p.Vertices[i]})
	}
	return all
}

// PlacedVertex is a vertex with its path in the object.
//
// +kubebuilder:object:generate=false
type PlacedVertex struct {
	Path   string
	Vertex *v1alpha1.AbstractVertex
}

// Vertices are the vertices of an object. That of a MonoVertex has the fields that both kinds have.
func Vertices(o Object) (all []PlacedVertex) {
	for _, v := range verticesOf(o) {
		all = append(all, PlacedVertex{string(v.at), v.part})
	}
	return all
}

// whereVertices gives a field of the vertices that ask for something.
func whereVertices(o Object, field string, asks func(*v1alpha1.AbstractVertex) bool) (found []path) {
	for _, v := range verticesOf(o) {
		if asks(v.part) {
			found = append(found, v.at.at(field))
		}
	}
	return found
}

// A scale with equal bounds, or one that is disabled, asks for no scaling.
func scales(o Object) []path {
	return whereVertices(o, "scale", func(v *v1alpha1.AbstractVertex) bool {
		s := v.Scale
		fixed := s.Min != nil && s.Max != nil && *s.Min == *s.Max && s.Cron == nil
		return s != v1alpha1.Scale{} && !s.Disabled && !fixed
	})
}

func watermarkSettings(o Object) (found []path) {
	p, at := pipelineOf(o)
	if p == nil {
		return nil
	}
	if p.Watermark.Disabled {
		found = append(found, at.at("watermark.disabled"))
	}
	if d := p.Watermark.MaxDelay; d != nil && d.Duration > 0 {
		found = append(found, at.at("watermark.maxDelay"))
	}
	if p.Watermark.IdleSource != nil {
		found = append(found, at.at("watermark.idleSource"))
	}
	return found
}

func sideInputUses(o Object) []path {
	if p, at := pipelineOf(o); p != nil && len(p.SideInputs) > 0 {
		return []path{at.at("sideInputs")}
	}
	return nil
}

func updateStrategies(o Object) []path {
	return whereVertices(o, "updateStrategy", func(v *v1alpha1.AbstractVertex) bool { return v.UpdateStrategy != v1alpha1.UpdateStrategy{} })
}

func redisRateLimits(o Object) (found []path) {
	inRedis := func(l *v1alpha1.RateLimit) bool { return l != nil && l.Store != nil && l.Store.RedisStore != nil }
	const field = "limits.rateLimit.store.redisStore"
	if p, at := pipelineOf(o); p != nil && p.Limits != nil && inRedis(p.Limits.RateLimit) {
		found = append(found, at.at(field))
	}
	if m, ok := o.Manifest.(*v1alpha1.MonoVertex); ok && m.Spec.Limits != nil && inRedis(m.Spec.Limits.RateLimit) {
		found = append(found, path("spec").at(field))
	}
	return append(found, whereVertices(o, field, func(v *v1alpha1.AbstractVertex) bool {
		return v.Limits != nil && inRedis(v.Limits.RateLimit)
	})...)
}

func nativeRedis(o Object) []path {
	if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok && s.Spec.Redis != nil && s.Spec.Redis.Native != nil {
		return []path{"spec.redis.native"}
	}
	return nil
}

func templates(o Object) []path {
	if p, at := pipelineOf(o); p != nil && p.Templates != nil {
		return []path{at.at("templates")}
	}
	return nil
}
