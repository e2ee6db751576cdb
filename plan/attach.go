package plan

// ResolveAttach makes the plan of a network namespace that another program made. The error is a *UsageError.
func ResolveAttach(c *Config, t *Target, host Host) (*Plan, error) {
	named := 0
	for _, given := range []bool{t.PID != 0, t.NetNS != "", t.TAP != nil} {
		if given {
			named++
		}
	}
	switch {
	case named != 1:
		return nil, usage("Target", "a target is a process, a path or a TAP, and one of them")
	case t.PID < 0:
		return nil, usage("Target", "invalid process: %d", t.PID)
	case t.TAP != nil && (t.UserNS != "" || c.Configure):
		return nil, usage("Target", "conflicting options: a TAP is not configured from outside of its namespace")
	case t.TAP != nil && c.PublishAll:
		return nil, usage("PublishAll", "conflicting options: publish-all and a TAP")
	case c.Network != "":
		return nil, usage("Network", "conflicting options: network mode and attaching")
	}
	p := base(c)
	p.Network, p.Unconfigured = NetworkAttach, !c.Configure
	return p, p.complete(c, host)
}
