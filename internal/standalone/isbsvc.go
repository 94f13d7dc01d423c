package standalone

import (
	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/manifest"
)

// bufferConfig is how the buffers of a pipeline are set up. maxInFlight is buffer.Options.MaxInFlight.
func (r *runner) bufferConfig(p *v1alpha1.Pipeline) (cfg isb.Settings, maxInFlight int, err error) {
	cfg = isb.Settings{Logger: r.log}
	service := r.bufferService(p)
	if maxInFlight, err = isb.Configure(service, &cfg); err != nil {
		return cfg, 0, err
	}
	if cfg.Memory && (r.cfg.embedded() || r.cfg.Hosted != nil && r.cfg.Hosted.Embedded) {
		// The broker ends with this process: what it kept in memory would be lost at every end of a run.
		cfg.Memory = false
		if r.cfg.Hosted != nil {
			return cfg, maxInFlight, nil // its Host has said so
		}
		r.inFiles.Do(func() {
			r.log.Warn("bufferConfig asks for storage in memory, using files: the broker in this process would lose the buffers with every stop", "service", service.Name, "pipeline", p.Name)
		})
	}
	return cfg, maxInFlight, nil
}

// bufferService finds the InterStepBufferService that a pipeline names; nil if it is not among the manifests.
func (r *runner) bufferService(p *v1alpha1.Pipeline) *v1alpha1.InterStepBufferService {
	s, _ := bufferServiceOf(r.cfg.Objects, p)
	return s
}

func bufferServiceOf(objects []manifest.Object, p *v1alpha1.Pipeline) (service *v1alpha1.InterStepBufferService, where manifest.Object) {
	name := p.Spec.InterStepBufferServiceName
	if name == "" {
		name = "default"
	}
	for _, o := range objects {
		if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok && s.Name == name && (s.Namespace == p.Namespace || s.Namespace == "" || p.Namespace == "") {
			service, where = s, o
		}
	}
	return service, where
}
