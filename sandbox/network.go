package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"rootlessnet/api"
	"rootlessnet/plan"
)

// Changes of a running sandbox's network. Each of them updates the state record.

var errNoPorts = errors.New("only a sandbox in bridge mode has ports")

var errNotPlanned = errors.New("only a network that was made with a Plan can be given another one")

// addSpec publishes all ports of a spec or none. The error is an *api.Error.
func (s *sandbox) addSpec(spec string) ([]plan.Port, error) {
	if s.network == nil {
		return nil, api.Conflict(errNoPorts)
	}
	mappings, err := plan.ParsePortSpec(spec)
	if err != nil {
		return nil, api.Invalid(err)
	}
	return s.addMappings(mappings)
}

func (s *sandbox) addMappings(mappings []plan.PortMapping) ([]plan.Port, error) {
	if s.network == nil {
		return nil, api.Conflict(errNoPorts)
	}
	if err := plan.CheckFree(mappings, s.network.Ports()); err != nil {
		return nil, api.Conflict(err)
	}
	added, err := s.network.AddPorts(mappings)
	if err != nil {
		return nil, api.Conflict(s.nameHolder(err))
	}
	s.updateRecord()
	return added, nil
}

// removeSpec closes the ports that a spec names. The error is an *api.Error.
func (s *sandbox) removeSpec(spec string) ([]plan.Port, error) {
	if s.network == nil {
		return nil, api.Conflict(errNoPorts)
	}
	mappings, err := plan.ParsePortSpec(spec)
	if err != nil {
		return nil, api.Invalid(err)
	}
	named, err := plan.SelectPorts(mappings, s.network.Ports())
	if err != nil {
		return nil, api.NotFound(err)
	}
	return s.removePorts(func(p plan.Port) bool { return slices.Contains(named, p) }), nil
}

func (s *sandbox) removePorts(want func(plan.Port) bool) []plan.Port {
	if s.network == nil {
		return nil
	}
	removed := s.network.RemovePorts(want)
	s.updateRecord()
	return removed
}

// removeMapping closes the ports of one mapping. The error is an *api.Error.
func (s *sandbox) removeMapping(id int) ([]plan.Port, error) {
	removed := s.removePorts(func(p plan.Port) bool { return p.ID == id })
	if len(removed) == 0 {
		return nil, api.NotFound(fmt.Errorf("no port has the id %d", id))
	}
	return removed, nil
}

// setNetwork puts the addresses of another NetworkPlan into force, see Attached.SetNetwork.
func (s *sandbox) setNetwork(c *plan.Config) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.cfg.Plan == nil || c.Plan == nil {
		return errNotPlanned
	}
	now, err := s.network.Plan().Readdressed(c)
	if err != nil {
		return err
	}
	if err := s.network.Readdress(now); err != nil {
		return err
	}
	s.updateRecord()
	return s.network.Relink()
}
